"""Every call that MatConvNet refuses is refused by our kernels too, with the numbers that disagree."""

import numpy as np
import pytest
from matlab import load, nchw, numbers

from dagnn.errors import DagnnError, DTypeError, OptionError, ShapeError

CASES = load("errors")

# What we say, in the order of the cases. TypeError is Python's own: the kernel has no such option.
EXPECTED = [
    (ShapeError, "filters of 4x3 larger than the padded input of 3x3"),
    (ShapeError, "input has 3 channels, filters expect 2 or a multiple of it"),
    (ShapeError, "3 filters do not divide into 2 groups"),
    (ShapeError, r"biases have shape \(2,\), expected \(3,\)"),
    (OptionError, "pad must not be negative. Received: -1"),
    (OptionError, r"pad takes 1 or 4 values \(top, bottom, left, right\). Received: \(1, 2\)"),
    (OptionError, "stride must be at least 1. Received: 0"),
    (OptionError, "dilate must be at least 1. Received: 0"),
    (ShapeError, r"dzdy has shape \(1, 3, 2, 3\), expected \(1, 3, 3, 3\)"),
    (DTypeError, "x is float32, w is float64"),
    (OptionError, r"dilate must be 1 where there are no filters. Received: \(2, 2\)"),
    (TypeError, "unexpected keyword argument 'bogus'"),
    (ShapeError, "input has 2 channels, filters expect 3"),
    (ShapeError, r"crop \(3, 2, 0, 0\) leaves an output of 0x5"),
    (OptionError, "3 channels do not divide into num_groups=2"),
    (ShapeError, r"biases have shape \(2,\), expected \(3,\)"),
    (OptionError, "upsample must be at least 1. Received: 0"),
    (OptionError, r"pad \(3, 3, 3, 3\) must be smaller than the pooling window of 3x3"),
    (ShapeError, "pooling window of 3x3 larger than the padded input of 2x5"),
    (OptionError, r"pad \(0, 2, 0, 0\) must be smaller than the pooling window of 2x2"),
    (TypeError, "unexpected keyword argument 'method'"),
    (OptionError, "stride must be at least 1. Received: 0"),
    (OptionError, "size must be at least 1. Received: 0"),
    (ShapeError, r"x has 2 channels, so multipliers must be \(2,\), got shape \(3,\)"),
    (ShapeError, r"x has 2 channels, so biases must be \(2,\), got shape \(3,\)"),
    (ShapeError, r"x has 2 channels, so moments must be \(2, 2\), got shape \(3, 2\)"),
    (ShapeError, r"grid must be \(M, 2, H, W\), got shape \(2, 3, 2, 2\)"),
    (ShapeError, "3 grids for 2 images: expected a multiple"),
    (ShapeError, r"rois must be \(5, R\) with R at least 1, got shape \(4, 2\)"),
    (OptionError, r"subdivisions must be at least 1. Received: \(0, 1\)"),
    (OptionError, "axes"),
    (ShapeError, r"labels have shape \(1, 1, 1, 3\).* needs \(2, 1, 1, 1\)"),
    (OptionError, "kind is one of .* Received: 'nope'"),
    (ShapeError, r"labels have shape \(2, 3, 2, 2\).* needs \(2, 1, 2, 2\)"),
    (ShapeError, r"labels have shape \(2, 1, 2, 2\).* needs \(2, 3, 2, 2\)"),
    (TypeError, "unexpected keyword argument 'slope'"),
]

RENAMED = {"numgroups": "num_groups", "loss": "kind", "dimensions": "axes"}
AXES = {1: 2, 2: 3, 3: 1, 4: 0}


def call(backend, function, arguments):
    """The MatConvNet call, made with our kernels."""
    first = next((k for k, a in enumerate(arguments) if isinstance(a, str)), len(arguments))
    inputs, pairs = arguments[:first], arguments[first:]
    options = {RENAMED.get(n, n): numbers(v) for n, v in zip(pairs[::2], pairs[1::2], strict=True)}
    arrays = [backend.asarray(nchw(a)) if np.size(a) else None for a in inputs]
    vectors = [None if np.size(a) == 0 else backend.asarray(np.ravel(a)) for a in inputs]
    x = arrays[0]
    match function.removeprefix("vl_nn"):
        case "conv" if len(inputs) == 4:
            return backend.conv_dzdx(arrays[3], arrays[1], x.shape, **options)
        case "conv":
            return backend.conv(x, arrays[1], vectors[2], **options)
        case "convt":
            return backend.conv_transpose(x, arrays[1], vectors[2], **options)
        case "pool":
            return backend.max_pool(x, numbers(inputs[1]), **options)
        case "bnorm":
            if "moments" in options:
                options["moments"] = backend.asarray(pairs[1])
            return backend.batch_norm(x, vectors[1], vectors[2], **options)
        case "bilinearsampler":
            return backend.bilinear_sampler(x, backend.asarray(inputs[1].transpose(3, 0, 1, 2)))
        case "roipool":
            return backend.roi_pool(x, backend.asarray(inputs[1]), **{"subdivisions": 1, **options})
        case "normalizelp":
            return backend.normalize_lp(x, axes=(AXES.get(options["axes"], -1),))
        case "loss":
            return backend.loss(x, arrays[1], **options)
        case "relu":
            return backend.relu(x, **options)
    raise AssertionError(function)


def test_every_case_has_its_message():
    assert len(CASES) == len(EXPECTED) == 36
    assert all(issubclass(error, DagnnError) or error is TypeError for error, _ in EXPECTED)


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_refused(backend, number):
    error, message = EXPECTED[number]
    with pytest.raises(error, match=message):
        call(backend, CASES[number]["fn"], CASES[number]["args"])
