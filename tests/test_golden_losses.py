"""vl_nnloss, vl_nnsoftmaxloss and vl_nnpdist against MatConvNet."""

import pytest
from agreement import agree
from matlab import cases, load, nchw

from dagnn.backends.reference.losses import ATTRIBUTE
from dagnn.errors import OptionError, ShapeError


@pytest.mark.parametrize("case", cases("loss"))
def test_loss(backend, case):
    opts = case.opts
    kind = opts.pop("loss", "softmaxlog")
    opts = {"top_k" if name == "topK" else name: value for name, value in opts.items()}

    def kernel(get):
        labels = get("c") if kind in ATTRIBUTE else get("c") - 1
        arguments = get("x"), labels, get("instanceWeights")
        return {
            "y": backend.loss(*arguments, kind=kind, **opts),
            "dzdx": backend.loss_dzdx(get("dzdy"), *arguments, kind=kind, **opts),
        }

    agree(backend, case, kernel)


@pytest.mark.parametrize("case", cases("softmaxloss"))
def test_softmaxloss_is_loss_with_weights_from_the_second_label_channel(backend, case):
    def kernel(get):
        c = get("c")
        arguments = get("x"), c[:, :1] - 1, c[:, 1:] if c.shape[1] == 2 else None
        return {"y": backend.loss(*arguments), "dzdx": backend.loss_dzdx(get("dzdy"), *arguments)}

    agree(backend, case, kernel)


@pytest.mark.parametrize("case", cases("pdist"))
def test_pdist(backend, case):
    opts = {"no_root" if name == "noRoot" else name: value for name, value in case.opts.items()}
    opts["p"] = case.raw["in"]["p"]

    def kernel(get):
        arguments = get("x"), get("x0"), get("instanceWeights")
        dzdx = backend.pdist_dzdx(get("dzdy"), *arguments, **opts)
        # Where x0 is one vector for all pixels MatConvNet leaves dzdx0 unsummed.
        return {"y": backend.pdist(*arguments, **opts), "dzdx": dzdx, "dzdx0": -dzdx}

    agree(backend, case, kernel)


@pytest.mark.parametrize(
    "number, error, message",
    [
        (32, ShapeError, r"labels have shape \(1, 1, 1, 3\), but x \(2, 3, 1, 1\) needs \(2, 1, 1, 1\)"),
        (33, OptionError, r"kind is one of classerror, .* hinge\. Received: 'nope'"),
        (34, ShapeError, r"labels have shape \(2, 3, 2, 2\), but .* needs \(2, 1, 2, 2\) .* of the 2 images"),
        (35, ShapeError, r"labels have shape \(2, 1, 2, 2\), but x \(2, 3, 2, 2\) needs \(2, 3, 2, 2\)"),
    ],
)
def test_loss_refuses_what_matconvnet_refuses(backend, number, error, message):
    x, c, *rest = load("errors")[number - 1]["args"]
    opts = {"kind": rest[2]} if rest else {}
    with pytest.raises(error, match=message):
        backend.loss(backend.asarray(nchw(x)), backend.asarray(nchw(c)), **opts)
