"""Each block in MatConvNet's spelling and in ours: one table, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from .. import layers as blocks
from ..dtypes import is_half
from ..errors import DagnnError, FileFormatError, OptionError
from ..layers.layer import Layer
from ..layers.placeholder import Placeholder
from .custom import WITHOUT_MEANING

AXIS_OF_DIM = {1: 2, 2: 3, 3: 1, 4: 0}  # H x W x C x N is (N, C, H, W) under transpose(3, 2, 0, 1)
DIM_OF_AXIS = {axis: dim for dim, axis in AXIS_OF_DIM.items()}


# ---- arrays


def to_nchw(array: np.ndarray) -> np.ndarray:
    """H x W x C x N, trailing ones restored, as (N, C, H, W)."""
    full = array.reshape(array.shape + (1,) * (4 - array.ndim))
    return np.ascontiguousarray(full.transpose(3, 2, 0, 1))


def to_matlab(array: np.ndarray) -> np.ndarray:
    """(N, C, H, W) as H x W x C x N, without trailing ones, as MATLAB keeps it."""
    array = np.asarray(array).transpose(2, 3, 1, 0)
    dims = array.ndim
    while dims > 2 and array.shape[dims - 1] == 1:
        dims -= 1
    return np.asfortranarray(array.reshape(array.shape[:dims]))


def read_param(role: str, value: Any) -> np.ndarray:
    """A parameter's array in our axes: banks and Scale's arrays 4-D, vectors 1-D, moments (C, 2).

    Of a class we don't know (role "value"), arrays of 3 and 4 dimensions are taken for H x W x C x N, and
    matrices are kept as they are.
    """
    array = np.asarray(value)
    if array.dtype.kind != "f":
        array = array.astype(np.float32)
    if role in ("filters", "maps") or (role == "value" and 2 < array.ndim <= 4):
        if array.ndim > 4:
            raise FileFormatError(f"a parameter of {array.ndim} dimensions, expected at most 4")
        return to_nchw(array)
    if role in ("moments", "value"):
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array.ravel())


def write_param(value: np.ndarray) -> np.ndarray:
    """A parameter's array as MatConvNet expects it: vectors are columns; MATLAB has no 16 bits."""
    if is_half(value.dtype):
        value = value.astype(np.float32)
    if value.ndim == 4:
        return to_matlab(value)
    return np.asfortranarray(value.reshape(len(value), -1) if value.ndim == 1 else value)


# ---- option values


def integers(value: Any) -> Any:
    """A number or a row of numbers as int or tuple of int; options arrive as any numeric type."""
    values = tuple(int(v) for v in np.ravel(value))
    return values[0] if len(values) == 1 else values


def reals(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in np.ravel(value))


def real(value: Any) -> float:
    return float(np.ravel(value)[0])


def flag(value: Any) -> bool:
    return bool(np.ravel(value)[0]) if np.size(value) else False


def size(value: Any) -> tuple[int, ...]:
    """[h w c k] as (k, c, h, w); MATLAB drops trailing ones."""
    h, w, c, k = ([int(v) for v in np.ravel(value)] + [1] * 4)[:4]
    return k, c, h, w


def row(value: Any) -> Any:
    """A number, flag or tuple as MATLAB has it: double or logical, a row where there are several."""
    if isinstance(value, bool | str):
        return value
    return np.atleast_2d(np.asarray(value, np.float64))


def size_row(value: Any) -> np.ndarray:
    k, c, h, w = value
    return row((h, w, c, k))


def read_transform(value: Any) -> Any:
    """ROI transform for coordinates from 0: a scalar's offset vanishes, t becomes A 1 + t - 1."""
    matrix = np.asarray(value, np.float64)
    if matrix.size <= 2:
        return reals(matrix)[0] if matrix.size == 1 else tuple(reals(matrix))
    shifted = matrix.reshape(2, 3).copy()
    shifted[:, 2] += shifted[:, :2].sum(1) - 1
    return tuple(tuple(float(v) for v in line) for line in shifted)


def write_transform(value: Any) -> np.ndarray:
    matrix = np.asarray(value, np.float64)
    if matrix.ndim < 2:
        return row(value)
    shifted = matrix.copy()
    shifted[:, 2] -= shifted[:, :2].sum(1) - 1
    return shifted


@dataclass(frozen=True)
class Option:
    """One property: its name there and here, and how a value changes on the way."""

    matlab: str
    ours: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = row


_WINDOW = (Option("pad", "pad", integers), Option("stride", "stride", integers))
_GRID = (Option("Ho", "height", integers), Option("Wo", "width", integers))
_HAS_BIAS = Option("hasBias", "has_bias", flag)
_BACKPROP = Option("backprop", "backprop", str)  # of ours: written only where it is not the derivative
_SIZE = Option("size", "size", size, size_row)

OPTIONS: dict[str, tuple[Option, ...]] = {
    "Conv": (_SIZE, _HAS_BIAS, *_WINDOW, Option("dilate", "dilate", integers)),
    "ConvTranspose": (
        _SIZE,
        _HAS_BIAS,
        Option("upsample", "upsample", integers),
        Option("crop", "crop", integers),
        Option("numGroups", "num_groups", integers),
    ),
    "Pooling": (
        Option("method", "method", str),
        Option("poolSize", "pool_size", integers),
        *_WINDOW,
        _BACKPROP,
    ),
    "ReLU": (Option("leak", "leak", real), _BACKPROP),
    "Sigmoid": (),
    "SoftMax": (),
    "BatchNorm": (Option("numChannels", "num_channels", integers), Option("epsilon", "epsilon", real)),
    "DropOut": (Option("rate", "rate", real), Option("frozen", "frozen", flag)),
    "LRN": (Option("param", "param", reals), _BACKPROP),
    "SpatialNorm": (Option("param", "param", reals),),
    "NormOffset": (Option("param", "param", reals),),
    "Loss": (
        Option("loss", "loss", str),
        Option("ignoreAverage", "ignore_average", flag),
        Option("topK", "top_k", integers),
        Option("threshold", "threshold", real),
        Option("normalise", "normalise", flag),
    ),
    "PDist": (
        Option("p", "p", real),
        Option("noRoot", "no_root", flag),
        Option("epsilon", "epsilon", real),
        Option("aggregate", "aggregate", flag),
    ),
    "Sum": (),
    "Concat": (
        Option("dim", "axis", lambda v: AXIS_OF_DIM[integers(v)], lambda axis: row(DIM_OF_AXIS[axis])),
    ),
    "Scale": (_SIZE, _HAS_BIAS),
    "Crop": (Option("crop", "crop", integers),),
    "ROIPooling": (
        Option("method", "method", str),
        Option("subdivisions", "subdivisions", integers),
        Option("transform", "transform", read_transform, write_transform),
        Option("flatten", "flatten", flag),
    ),
    "BilinearSampler": (),
    "AffineGridGenerator": _GRID,
    "UniformScalingGridGenerator": _GRID,
    "LossSmoothL1": (Option("sigma", "sigma", real),),
}

LOSS_OPTIONS = ("topK", "threshold", "normalise")  # MatConvNet passes these in the cell `opts`


def read_layer(
    kind: str, block: Mapping[str, Any], params: list[np.ndarray | None]
) -> tuple[Layer, list[str]]:
    """The layer of MatConvNet class `kind` ("dagnn.Conv") and the properties it had that mean nothing to us.

    A class we don't know, or know under other properties, becomes a Placeholder that keeps everything.
    """
    name = kind.removeprefix("dagnn.")
    given = dict(block)
    if name not in OPTIONS:
        return _read_own(name, kind, given), []
    if name == "Loss":
        given.update(_pairs(given.get("opts")))
    config, unknown = {}, []
    options = {option.matlab: option for option in OPTIONS[name]}
    for key, value in given.items():
        if key in options and np.size(value):
            config[options[key].ours] = _read_option(kind, options[key], value)
        elif key not in options and key not in WITHOUT_MEANING:
            unknown.append(key)
    _trust_params(name, config, params)
    layer_class = blocks.BUILTIN[name]
    wanted = {f.name for f in fields(layer_class)}
    try:
        return layer_class(**{key: value for key, value in config.items() if key in wanted}), unknown
    except (DagnnError, TypeError) as error:
        if name == "Loss":  # one of the many that others have added
            return Placeholder(kind, dict(block)), []
        raise FileFormatError(f"{kind}: {error}") from error


def _read_option(kind: str, option: Option, value: Any) -> Any:
    try:
        return option.read(value)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise FileFormatError(f"{kind}: property {option.matlab!r} can't be {value!r}") from error


def _read_own(name: str, kind: str, given: dict[str, Any]) -> Layer:
    """A block MatConvNet doesn't have: ours if it has exactly our properties, else a Placeholder."""
    layer_class = blocks.BUILTIN.get(name)
    if layer_class and layer_class is not Placeholder and set(given) == {f.name for f in fields(layer_class)}:
        try:
            return layer_class.load({key: _plain_option(value) for key, value in given.items()})
        except (DagnnError, TypeError, ValueError):
            pass
    return Placeholder(f"dagnn.{name}" if layer_class else kind, given)


def _plain_option(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = [int(v) if float(v).is_integer() else float(v) for v in value.ravel()]
        return value[0] if len(value) == 1 else value
    return value.item() if isinstance(value, np.generic) else value


def _pairs(opts: Any) -> dict[str, Any]:
    """{'topK', 5, ...} as a dict of the options we know; single words ('cuDNN') are skipped."""
    items = list(opts) if isinstance(opts, list | tuple) else []
    found = {}
    for key, value in pairwise(items):
        for known in LOSS_OPTIONS:
            if isinstance(key, str) and key.lower() == known.lower():
                found[known] = value
    return found


def _trust_params(name: str, config: dict[str, Any], params: list[np.ndarray | None]) -> None:
    """Sizes follow the arrays where there are any: `size` loses trailing ones, or was never filled in."""
    first, second = (*params, None, None)[:2]
    if name in ("Conv", "ConvTranspose") or (name == "Scale" and params):
        empty_bias = first is not None and second is None
        config["has_bias"] = config.get("has_bias", True) and len(params) > 1 and not empty_bias
        if first is not None:
            config["size"] = first.shape
    elif name == "BatchNorm" and first is not None:
        config["num_channels"] = len(first)


def write_layer(layer: Layer, names: Mapping[type, str]) -> tuple[str, dict[str, Any]]:
    """(MatConvNet class, properties) of a layer; `names` are those of custom classes.

    Blocks MatConvNet doesn't have keep our names; options of custom classes are spelt as in MATLAB.
    """
    if isinstance(layer, Placeholder):
        return layer.class_name, dict(layer.config)
    name = type(layer).__name__
    config = layer.save()
    if blocks.BUILTIN.get(name) is not type(layer):
        name = names.get(type(layer), name)
        if name.removeprefix("dagnn.") in blocks.BUILTIN:
            raise OptionError(f"{name!r} is built in: give the class another name with layers=")
        return name, {camel_case(key): value for key, value in config.items()}
    if name not in OPTIONS:
        return f"dagnn.{name}", {
            key: row(value) if value is not None else None for key, value in config.items()
        }
    block = {
        option.matlab: option.write(config[option.ours])
        for option in OPTIONS[name]
        if config.get(option.ours) is not None
        and (option is not _BACKPROP or config["backprop"] != vars(type(layer))["backprop"])
    }
    if name == "Loss":
        # Older releases reject options they don't know, so only what differs from the default is written.
        pairs = [
            (option, block.pop(option.matlab)) for option in OPTIONS[name] if option.matlab in LOSS_OPTIONS
        ]
        changed = [(o.matlab, value) for o, value in pairs if config[o.ours] != getattr(type(layer), o.ours)]
        block["opts"] = [item for pair in changed for item in pair]
    elif name in ("Conv", "ConvTranspose", "Pooling"):
        block["opts"] = ["cuDNN"]
    elif name == "ReLU":
        block |= {"useShortCircuit": True, "opts": []}
    return f"dagnn.{name}", block


def camel_case(name: str) -> str:
    """Our names in MATLAB's spelling.

    >>> camel_case("has_bias"), camel_case("size")
    ('hasBias', 'size')
    """
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
