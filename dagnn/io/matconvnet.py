"""MatConvNet networks: from the plain values of a .mat file to a DagNN, through every historical spelling.

A file holds a DagNN struct (layers, params, vars) or a SimpleNN struct (a cell of layers), as the variable
`net`, at top level or nested; what stands beside the network is kept in `net.meta["siblings"]`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np

from ..errors import DagnnError, FileFormatError, OptionError, UnknownFieldWarning, shorten
from ..layers import BUILTIN
from ..layers.layer import Layer
from ..layers.placeholder import Placeholder
from ..net import DagNN
from ..simplenn import SimpleNN
from . import mat
from .blocks import integers, read_layer, read_param, real, reals
from .custom import make_custom
from .mat import Opaque, StructArray

SIBLINGS = "siblings"
DEEPEST_NET = 3  # how many structs down a network is looked for


def load(path: str | PathLike[str], layers: Mapping[str, Any] | None = None) -> DagNN:
    """The network in a .mat file as a DagNN; see `dagnn.load`."""
    net = read(path)
    if isinstance(net, SimpleNN):
        with _as_file_errors(path):
            net = net.to_dagnn()
    return supply(net, layers or {})


@contextmanager
def _as_file_errors(path: str | PathLike[str]) -> Iterator[None]:
    """What the network of a file gets wrong is wrong with the file."""
    try:
        yield
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except DagnnError as error:
        raise FileFormatError(f"{path}: the network is broken: {error}") from error


def read(path: str | PathLike[str]) -> DagNN | SimpleNN:
    """The network in a .mat file in its own wrapper."""
    variables = mat.read(path)
    struct, siblings = find_network(variables, path)
    with _as_file_errors(path):
        net = _simplenn(struct) if is_simplenn(struct) else _dagnn(struct)
    if siblings:
        net.meta[SIBLINGS] = siblings
    return net


# ---- finding the network


def is_simplenn(struct: Mapping[str, Any]) -> bool:
    """A SimpleNN's layers are a cell array of structs."""
    return isinstance(struct["layers"], np.ndarray)


def _is_network(value: Any) -> bool:
    if not isinstance(value, dict) or "layers" not in value:
        return False
    layers = value["layers"]
    if isinstance(layers, np.ndarray):
        return (
            layers.dtype == object and layers.size > 0 and all(_is_layer(v, ("type",)) for v in layers.flat)
        )
    if isinstance(layers, dict):
        return _is_layer(layers, ("type", "inputs", "outputs"))
    return isinstance(layers, StructArray) and {"type", "inputs", "outputs"} <= set(layers.fields)


def _is_layer(value: Any, needed: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and all(key in value for key in needed)


def find_network(variables: dict[str, Any], path: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The struct that is a network, and what stands beside it as plain values."""
    level: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), variables)]
    for _ in range(DEEPEST_NET + 1):
        for names, struct in sorted(level, key=lambda item: item[0] != ("net",)):
            if _is_network(struct):
                if not names:  # the fields of the net are the variables of the file
                    own = {"layers", "params", "vars", "meta", "classes", "normalization", "conserveMemory"}
                    return struct, {k: simplify(v) for k, v in variables.items() if k not in own}
                return struct, {k: simplify(v) for k, v in _without(variables, names).items()}
        level = [
            ((*names, key), value)
            for names, struct in level
            for key, value in struct.items()
            if isinstance(value, dict)
        ]
    raise FileFormatError(f"{path}: not a network but {_what_it_seems(variables)}")


def _without(struct: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """`struct` less the network inside it."""
    rest = {key: value for key, value in struct.items() if key != names[0]}
    if len(names) > 1 and (inner := _without(struct[names[0]], names[1:])):
        rest[names[0]] = inner
    return rest


def _what_it_seems(variables: dict[str, Any]) -> str:
    """A file without a network, in a few words."""
    values = list(variables.values())
    for value in values:
        if isinstance(value, Opaque):
            return f"an opaque MATLAB object ({value.class_name or 'unknown'}), which only MATLAB can open"
    structs = [variables, *(v for v in values if isinstance(v, dict))]
    for struct in structs:
        keys = set(struct)
        if "images" in keys and ("meta" in keys or isinstance(struct["images"], dict)):
            return "an image database (imdb): open it with the data reader"
        if {"forward", "backward"} <= keys:
            return "a compiled AutoNN network, which has no layers by name"
    if all(isinstance(v, np.ndarray) for v in values):
        return f"arrays without a structure ({shorten(variables)}), perhaps a list of weights"
    inner = structs[-1] if len(structs) == 2 and len(variables) == 1 else variables
    return f"a struct of options or results with the fields {shorten(inner)}"


# ---- plain values


def simplify(value: Any) -> Any:
    """MATLAB values as Python ones, for meta: cells are lists, rows 1-D, 1x1 arrays scalars."""
    if isinstance(value, dict):
        return {key: simplify(v) for key, v in value.items()}
    if isinstance(value, StructArray):
        return [simplify(record) for record in value.records]
    if isinstance(value, Opaque):
        return f"<{value.kind} {value.class_name}>".replace(" >", ">")
    if isinstance(value, np.ndarray) and value.dtype == object:
        if value.ndim == 2 and min(value.shape) > 1:
            return [[simplify(v) for v in line] for line in value]
        return [simplify(v) for v in value.ravel(order="F")]
    if isinstance(value, np.ndarray) and value.ndim == 2:
        if value.shape == (1, 1):
            scalar = value[0, 0]
            return scalar.item() if value.dtype in (np.float64, np.bool_) else scalar
        if value.shape[0] == 1:
            return np.ascontiguousarray(value[0])
    return value


def _records(value: Any) -> list[dict[str, Any]]:
    """The structs of a struct array of any size."""
    if isinstance(value, StructArray):
        return value.records
    return [value] if isinstance(value, dict) else []


def _strings(value: Any, what: str) -> list[str]:
    """A cell of names, or one name."""
    if isinstance(value, str):
        return [value] if value else []
    items = value.ravel(order="F").tolist() if isinstance(value, np.ndarray) and value.dtype == object else []
    if not all(isinstance(item, str) for item in items):
        raise FileFormatError(f"{what}: expected names, found {items!r}")
    return items


def _text(record: Mapping[str, Any], key: str, what: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise FileFormatError(f"{what} has no {key}")
    return value


def _fields(value: Any) -> dict[str, Any]:
    """The properties of a block; an empty one arrives as an empty array, cell or struct."""
    return value if isinstance(value, dict) else {}


def _meta(struct: Mapping[str, Any]) -> dict[str, Any]:
    """`meta`, or what stood at top level before there was one."""
    meta = simplify(struct.get("meta"))
    meta = meta if isinstance(meta, dict) else {}
    for key in ("classes", "normalization"):
        if key in struct and key not in meta:
            meta[key] = simplify(struct[key])
    return meta


# ---- DagNN


def _dagnn(struct: Mapping[str, Any]) -> DagNN:
    net = DagNN()
    stored = {_text(r, "name", f"parameter {k + 1}"): r for k, r in enumerate(_records(struct.get("params")))}
    unknown: dict[str, set[str]] = {}
    for k, record in enumerate(_records(struct["layers"])):
        name = _text(record, "name", f"layer {k + 1}")
        kind = _text(record, "type", f"layer {name!r}")
        params = _strings(record.get("params"), f"params of layer {name!r}")
        roles = _roles(kind, params)
        arrays = [
            _array(stored.get(p, {}).get("value"), role, p) for p, role in zip(params, roles, strict=True)
        ]
        layer, skipped = read_layer(
            kind, {k: simplify(v) for k, v in _fields(record.get("block")).items()}, arrays
        )
        unknown.setdefault(kind, set()).update(skipped)
        net.add_layer(
            name,
            layer,
            _strings(record["inputs"], f"inputs of layer {name!r}"),
            _strings(record["outputs"], f"outputs of layer {name!r}"),
            params[: len(layer.params)] if not isinstance(layer, Placeholder) else params,
        )
        for param, array in zip(net.layers[name].params, arrays, strict=False):
            if array is not None:
                net.params[param].value = array
    for name, record in stored.items():
        if name in net.params:
            _param_settings(net.params[name], record)
    for record in _records(struct.get("vars")):
        if record.get("name") in net.vars and np.size(record.get("precious", ())):
            net.vars[record["name"]].precious = bool(np.ravel(record["precious"])[0])
    dtype = _main_dtype([p.value for p in net.params.values() if p.value is not None])
    net.astype(dtype)
    net.meta = _meta(struct)
    _warn_unknown(unknown)
    return net


def _roles(kind: str, params: list[str]) -> list[str]:
    """What each parameter of a layer is, and so how its array is laid out."""
    name = kind.removeprefix("dagnn.")
    if name == "Scale":
        return ["maps"] * len(params)
    known = BUILTIN.get(name)
    roles = [spec.role for spec in known.param_specs] if known else []
    return (roles + ["value"] * len(params))[: len(params)]


def _array(value: Any, role: str, name: str) -> np.ndarray | None:
    if not isinstance(value, np.ndarray) or value.dtype == object or value.size == 0:
        return None
    try:
        return read_param(role, value)
    except (FileFormatError, ValueError, TypeError) as error:
        raise FileFormatError(f"parameter {name!r}: {error}") from error


def _param_settings(param: Any, record: Mapping[str, Any]) -> None:
    for key, attribute in (("learningRate", "learning_rate"), ("weightDecay", "weight_decay")):
        if np.size(record.get(key, ())):
            setattr(param, attribute, real(record[key]))
    if record.get("trainMethod") in ("gradient", "average"):
        param.train_method = record["trainMethod"]


def _warn_unknown(unknown: Mapping[str, set[str]]) -> None:
    parts = [f"{kind}: {', '.join(sorted(names))}" for kind, names in unknown.items() if names]
    if parts:
        warnings.warn(
            f"Properties without a meaning here were left out: {'; '.join(parts)}", UnknownFieldWarning, 4
        )


# ---- SimpleNN


def _simplenn(struct: Mapping[str, Any]) -> SimpleNN:
    layers = [_simple_layer(record, k) for k, record in enumerate(struct["layers"].ravel(order="F"))]
    weights = [w for layer in layers for w in layer.get("weights", []) if w is not None]
    dtype = _main_dtype(weights)
    for layer in layers:
        if "weights" in layer:
            layer["weights"] = [None if w is None else w.astype(dtype, copy=False) for w in layer["weights"]]
    return SimpleNN(layers, _meta(struct))


def _main_dtype(arrays: list[np.ndarray]) -> np.dtype:
    """The floating type most numbers have: stray doubles among singles follow them."""
    counts: dict[np.dtype, int] = {}
    for array in arrays:
        counts[array.dtype] = counts.get(array.dtype, 0) + array.size
    return max(counts, key=lambda dtype: counts[dtype], default=np.dtype(np.float32))


_READERS = {
    "pad": integers, "stride": integers, "dilate": integers, "pool": integers, "upsample": integers,
    "crop": integers, "numGroups": integers, "leak": real, "rate": real, "epsilon": real, "scale": real,
    "param": reals, "p": real, "learningRate": reals, "weightDecay": reals,
}  # fmt: skip


_ROLES = {
    "conv": ("filters", "biases"),
    "convt": ("filters", "biases"),
    "bnorm": ("multipliers", "biases", "moments"),
}


def _simple_layer(record: dict[str, Any], position: int) -> dict[str, Any]:
    """One layer with its weights in our axes and its options as Python numbers; other fields stay."""
    kind = _text(record, "type", f"layer {position + 1}")
    layer: dict[str, Any] = {"type": kind}
    for key, value in record.items():
        if key in _READERS and np.size(value):
            try:
                layer[key] = _READERS[key](value)
            except (TypeError, ValueError, OverflowError) as error:
                raise FileFormatError(f"layer {position + 1} ({kind}): {key} can't be {value!r}") from error
        elif key == "class":
            continue  # labels of the last training batch; a loss gets its labels when it is evaluated
        elif key not in ("type", "weights", "filters", "biases"):
            layer[key] = simplify(value)
    weights = _weights(record)
    if weights:
        roles = _ROLES.get(kind, ("value",) * len(weights))
        layer["weights"] = [
            _array(w, role, f"weight {k + 1} of layer {position + 1} ({kind})")
            for k, (w, role) in enumerate(zip(weights, roles, strict=False))
        ]
    return layer


def _weights(record: Mapping[str, Any]) -> list[Any]:
    """The cell `weights`, or the `filters` and `biases` of the first releases."""
    if "weights" in record:
        weights = record["weights"]
        return (
            weights.ravel(order="F").tolist()
            if isinstance(weights, np.ndarray) and weights.dtype == object
            else []
        )
    return [record[key] for key in ("filters", "biases") if key in record]


# ---- custom classes


def supply(net: DagNN, layers: Mapping[str, Any]) -> DagNN:
    """Replace the placeholders whose class `layers` names, with or without "dagnn." in front."""
    for name, node in list(net.layers.items()):
        if isinstance(node.layer, Placeholder):
            found = _lookup(layers, node.layer.class_name)
            if found is not None:
                net.replace_layer(name, _made(found, node.layer), node.params)
    return net


def _lookup(layers: Mapping[str, Any], class_name: str) -> Any:
    bare = class_name.removeprefix("dagnn.")
    return next((layers[key] for key in (class_name, bare, f"dagnn.{bare}") if key in layers), None)


def _made(found: Any, placeholder: Placeholder) -> Layer:
    if isinstance(found, type) and issubclass(found, Layer):
        return make_custom(found, placeholder.config)
    raise OptionError(
        f"layers[{placeholder.class_name!r}] must be a subclass of dagnn.Layer. Received: {found!r}"
    )
