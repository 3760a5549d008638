"""The layers of a SimpleNN: dicts with MatConvNet's fields, and the blocks of dagnn they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..backends.base import Backend
from ..errors import OptionError, PlaceholderError
from ..layers import (
    LRN,
    BatchNorm,
    Conv,
    ConvTranspose,
    DropOut,
    Loss,
    NormalizeLp,
    NormOffset,
    PDist,
    Pooling,
    ReLU,
    Sigmoid,
    SoftMax,
    SpatialNorm,
    Tanh,
)
from ..layers.layer import Layer

Link = dict[str, Any]
"""One layer of a SimpleNN."""

LOSSES = ("loss", "softmaxloss")
WITH_CLASS = (*LOSSES, "pdist")  # these compare with their field `class`
WITH_DERS = ("conv", "convt", "bnorm")  # these have weights, and derivatives for them

_POOL = {"method": "max", "pad": 0, "stride": 1, "opts": []}
_LRN = {"param": (5, 1, 0.0001 / 5, 0.75)}
_RELU = {"leak": 0}
_LP = {"p": 2, "epsilon": 1e-2, "spatial": False, "scale": 1}
_PDIST = {"p": 2, "noRoot": False, "aggregate": False, "epsilon": 1e-3, "instanceWeights": None}
_NOT_BACK = ("normalize_hacked", "lrn_hacked", "normalize_nobackprop", "lrn_nobackprop")
RELUS = {"relu": "relu", "relu_eccv16": "eccv16", "relu_deconvnet": "deconvnet", "relu_nobackprop": "none"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "conv": {"pad": 0, "stride": 1, "dilate": 1, "opts": []},
    "convt": {"crop": 0, "upsample": 1, "numGroups": 1, "opts": []},
    "bnorm": {"epsilon": 1e-5},
    "dropout": {"rate": 0.5},
    "normalizelp": _LP,
    "pdist": _PDIST,
    **dict.fromkeys(("pool", "pool_center"), _POOL),
    **dict.fromkeys(("normalize", "lrn", *_NOT_BACK), _LRN),
    **dict.fromkeys(RELUS, _RELU),
}
_OLD_RATES = {
    "learningRate": ("filtersLearningRate", "biasesLearningRate"),
    "weightDecay": ("filtersWeightDecay", "biasesWeightDecay"),
}


# ---- tidying


def tidy(layers: Iterable[Mapping[str, Any]], backend: Backend) -> list[Link]:
    """Copies of `layers` with all the fields that evaluation reads (MatConvNet's `vl_simplenn_tidy`).

    The first releases' `filters` and `biases` become `weights`; an empty array among them is None, and a
    convolution has two. Names that are missing are layer1, layer2 ...; a name that was there before gets
    _1, _2 ... behind it. Batch normalisation without moments gets mean 0 and sigma 1, like a new
    `dagnn.BatchNorm` (MatConvNet's sigma 0 divides by zero in mode "test").

    >>> [first, second] = tidy([{"type": "relu"}, {"type": "dropout", "name": "layer1"}], Backend())
    >>> first
    {'type': 'relu', 'weights': [], 'leak': 0, 'name': 'layer1', 'precious': False}
    >>> second["name"], second["rate"]
    ('layer1_1', 0.5)
    """
    links = [_tidy(layer, k, backend) for k, layer in enumerate(layers)]
    for link, name in zip(links, _unique([link["name"] for link in links]), strict=True):
        link["name"] = name
    return links


def _tidy(layer: Mapping[str, Any], k: int, backend: Backend) -> Link:
    if not isinstance(layer, Mapping) or not isinstance(layer.get("type"), str):
        raise OptionError(f"layers[{k}] must be a dict with a 'type'. Received: {str(layer)[:100]}")
    link, kind = dict(layer), layer["type"]
    try:
        link["weights"] = _tidy_weights(link, backend)
    except OptionError as error:
        error.add_context(f"layers[{k}] ({kind})", f"the fields {', '.join(layer)}")
        raise
    for ours, old in _OLD_RATES.items():
        rates = [np.ravel(link.get(name, ())) for name in old]
        if ours not in link and all(rate.size and rate.dtype.kind in "biuf" for rate in rates):
            link[ours] = tuple(float(rate[0]) for rate in rates)
            for name in old:
                del link[name]
    for name, default in DEFAULTS.get(kind, {}).items():
        if is_empty(link.get(name)):
            link[name] = list(default) if isinstance(default, list) else default
    link["name"] = f"layer{k + 1}" if is_empty(link.get("name")) else str(link["name"])
    precious: Any = link.get("precious")
    link["precious"] = not is_empty(precious) and bool(np.ravel(precious)[0])
    return link


def _tidy_weights(link: Link, backend: Backend) -> list[Any]:
    kind, given = link["type"], link.get("weights")
    if "weights" not in link and ("filters" in link or "biases" in link):
        given = [link.pop("filters", None), link.pop("biases", None)]
    elif kind in WITH_DERS and "weights" not in link:
        raise OptionError("the weights are missing")
    if isinstance(given, str) or not (given is None or hasattr(given, "__iter__")):
        raise OptionError(f"weights is a list of arrays, not {given!r}")
    weights = [None if is_empty(w) else backend.asarray(w) for w in ([] if given is None else given)]
    if kind in ("conv", "convt"):
        weights += [None] * (2 - len(weights))
    if kind == "convt" and weights[0] is None:
        raise OptionError("a transposed convolution needs filters")
    if kind == "bnorm":
        if len(weights) < 2 or weights[0] is None or weights[1] is None:
            raise OptionError("batch normalisation needs multipliers and biases")
        if len(weights) < 3 or weights[2] is None:
            moments = backend.zeros((len(weights[0]), 2), weights[0].dtype)
            moments[:, 1] = 1
            weights[2:] = [moments]
    return weights


def _unique(names: list[str]) -> list[str]:
    taken, unique = set(names), dict[str, None]()
    for name in names:
        k = 0
        stem = name
        while name in unique or (k and name in taken):
            k += 1
            name = f"{stem}_{k}"
        unique[name] = None
    return list(unique)


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing: None, [], '' or an array without elements."""
    if value is None or hasattr(value, "size"):
        return value is None or value.size == 0
    return hasattr(value, "__len__") and len(value) == 0


# ---- blocks


class _Fields(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise OptionError(f"the field {name!r} is missing")


def block(link: Link) -> Layer:
    """The layer of dagnn that computes `link`; PlaceholderError for a type that isn't known.

    >>> block({"type": "lrn", "param": (5, 1, 2e-5, 0.75)})
    LRN(param=(5, 1.0, 2e-05, 0.75), backprop='lrn')
    """
    kind = link["type"]
    if kind in BLOCKS:
        return BLOCKS[kind](_Fields(link))
    what = "its two functions are not known" if kind == "custom" else f"the type {kind!r} is not known"
    raise PlaceholderError(
        f"{what}. Supply them with\n"
        f"    link = net.layers[...]\n"
        f"    link['type'], link['forward'], link['backward'] = 'custom', forward, backward"
    )


def is_custom(link: Link) -> bool:
    """Whether `link` is computed by functions of its own."""
    return link["type"] == "custom" and callable(link.get("forward"))


def extra_inputs(link: Link) -> list[Any]:
    """What `link` compares its input with: its `class` and, of "pdist", its instance weights."""
    if link["type"] not in WITH_CLASS:
        return []
    if is_empty(link.get("class")):
        raise OptionError("nothing to compare with: set the layer's field 'class'")
    weights = link.get("instanceWeights") if link["type"] == "pdist" else None
    return [link["class"]] if is_empty(weights) else [link["class"], weights]


def _conv(f: _Fields) -> Layer:
    filters, biases = (*f["weights"], None)[:2]
    size = (1, 1, 1, 1) if filters is None else filters.shape  # without filters: the kernels' identity
    return Conv(size, biases is not None, f["stride"], f["pad"], f["dilate"])


def _convt(f: _Fields) -> Layer:
    filters, biases = (*f["weights"], None)[:2]
    return ConvTranspose(filters.shape, biases is not None, f["upsample"], f["crop"], f["numGroups"])


def _pool(f: _Fields) -> Layer:
    backprop = "center" if f["type"] == "pool_center" else "pool"
    return Pooling(f["method"], f["pool"], f["stride"], f["pad"], backprop)


BLOCKS: dict[str, Callable[[_Fields], Layer]] = {
    "conv": _conv,
    "convt": _convt,
    "pool": _pool,
    "pool_center": _pool,
    "normalize": lambda f: LRN(f["param"]),
    "lrn": lambda f: LRN(f["param"]),
    **dict.fromkeys(_NOT_BACK, lambda f: LRN(f["param"], "none")),
    "normalizelp": lambda f: NormalizeLp(f["p"], f["epsilon"], bool(f["spatial"]), f["scale"]),
    "softmax": lambda f: SoftMax(),
    "loss": lambda f: Loss(f.get("loss", "softmaxlog")),
    "softmaxloss": lambda f: Loss("softmaxlog"),
    **dict.fromkeys(RELUS, lambda f: ReLU(f["leak"], RELUS[f["type"]])),
    "tanh": lambda f: Tanh(),
    "sigmoid": lambda f: Sigmoid(),
    "noffset": lambda f: NormOffset(f["param"]),
    "spnorm": lambda f: SpatialNorm(f["param"]),
    "dropout": lambda f: DropOut(f["rate"], bool(f.get("frozen", False))),
    "bnorm": lambda f: BatchNorm(len(f["weights"][0]), f["epsilon"]),
    "pdist": lambda f: PDist(f["p"], bool(f["noRoot"]), f["epsilon"], bool(f["aggregate"])),
}
