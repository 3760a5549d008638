"""A DagNN as the struct MatConvNet's own saveobj makes, in a .mat file that `dagnn.DagNN.loadobj` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from ..errors import OptionError
from ..net import DagNN
from ..simplenn import SimpleNN
from . import mat
from .blocks import write_layer, write_param
from .mat import StructArray
from .matconvnet import SIBLINGS


def save(net: DagNN | SimpleNN, path: str | PathLike[str], layers: Mapping[str, Any] | None = None) -> None:
    """Write `net`, and the siblings it was loaded with, as variables of a .mat file."""
    struct = simplenn_struct(net) if isinstance(net, SimpleNN) else dagnn_struct(net, layers or {})
    siblings = {
        "net_siblings" if name == "net" else name: matlab_value(value, name)
        for name, value in net.meta.get(SIBLINGS, {}).items()
    }
    mat.write(path, {"net": struct, **siblings})


def dagnn_struct(net: DagNN, custom: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of saveobj: vars, params, layers, meta."""
    to_numpy = net.backend.to_numpy
    names = {found: name for name, found in custom.items() if isinstance(found, type)}
    layers = []
    for node in net.layers.values():
        kind, block = write_layer(node.layer, names)
        layers.append(
            {
                "name": node.name,
                "type": kind,
                "inputs": cell(node.inputs),
                "outputs": cell(node.outputs),
                "params": cell(node.params),
                "block": {key: matlab_value(value, f"{node.name}.{key}") for key, value in block.items()},
            }
        )
    params = [
        {
            "name": param.name,
            "value": np.empty((0, 0)) if param.value is None else write_param(to_numpy(param.value)),
            "learningRate": number(param.learning_rate),
            "weightDecay": number(param.weight_decay),
            "trainMethod": param.train_method,
        }
        for param in net.params.values()
    ]
    return {
        "vars": struct_array(
            [{"name": v.name, "precious": np.array([[v.precious]])} for v in net.vars.values()]
        ),
        "params": struct_array(params, ("name", "value", "learningRate", "weightDecay", "trainMethod")),
        "layers": struct_array(layers),
        "meta": _meta(net.meta),
    }


def simplenn_struct(net: SimpleNN) -> dict[str, Any]:
    """The fields of a SimpleNN struct: a cell of layers, and meta."""
    layers = []
    for layer in net.layers:
        struct = {k: matlab_value(v, k) for k, v in layer.items() if k not in ("weights", "class")}
        if "weights" in layer:
            weights = [
                np.empty((0, 0)) if w is None else write_param(np.asarray(w)) for w in layer["weights"]
            ]
            struct["weights"] = cell(weights)
        layers.append(struct)
    return {"layers": cell(layers), "meta": _meta(net.meta)}


def _meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {key: matlab_value(value, f"meta.{key}") for key, value in meta.items() if key != SIBLINGS}


def matlab_value(value: Any, where: str) -> Any:
    """A Python value as MATLAB has it: numbers are doubles, lists cells, lists of like dicts structs."""
    if value is None:
        return np.empty((0, 0))
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): matlab_value(v, f"{where}.{key}") for key, v in value.items()}
    if isinstance(value, list | tuple):
        if (
            (len(value) > 1 or isinstance(value, tuple))
            and value
            and all(isinstance(v, bool | int | float) for v in value)
        ):
            return np.array([value], bool if all(isinstance(v, bool) for v in value) else np.float64)
        items = [matlab_value(v, f"{where}[{k}]") for k, v in enumerate(value)]
        alike = (
            len(items) > 1 and all(isinstance(v, dict) for v in items) and len({tuple(v) for v in items}) == 1
        )
        return struct_array(items) if alike else cell(items)
    if callable(value):
        raise OptionError(f"{where}: a function can't be written to a .mat file")
    array = np.asarray(value)
    if array.dtype.kind not in "bifuc":
        raise OptionError(f"{where}: {type(value).__name__} can't be written to a .mat file")
    if array.dtype.kind in "iu" and not isinstance(value, np.ndarray | np.generic):
        array = array.astype(np.float64)
    return np.atleast_2d(array)


def number(value: float) -> np.ndarray:
    return np.array([[value]], np.float64)


def cell(items: Sequence[Any]) -> np.ndarray:
    """A 1 x n cell (0 x 0 when empty, as MATLAB writes {})."""
    array = np.empty((1, len(items)) if items else (0, 0), object)
    for k, item in enumerate(items):
        array[0, k] = item
    return array


def struct_array(records: Sequence[dict[str, Any]], fields: Sequence[str] = ()) -> StructArray:
    return StructArray((1, len(records)), tuple(records[0]) if records else tuple(fields), list(records))
