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
from ..simplenn.layers import BLOCKS
from . import mat
from .blocks import OPTIONS, integers, read_layer, read_param, real, reals
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
    except (TypeError, ValueError, LookupError, OverflowError, AttributeError) as error:
        # A value of a kind that no field of the network should have.
        raise FileFormatError(f"{path}: the network has a value out of place: {error}") from error


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
    """A SimpleNN's layers say nothing of inputs and outputs."""
    records = _records(struct["layers"])
    return bool(records) and not all("inputs" in record and "outputs" in record for record in records)


def _is_network(value: Any) -> bool:
    if not isinstance(value, dict) or "layers" not in value:
        return False
    records = _records(value["layers"])
    if not records:  # a net without layers, but not just anything with a field of that name
        nothing: Any = getattr(value["layers"], "records", value["layers"])
        return {"vars", "params"} <= set(value) and np.size(nothing) == 0
    return all(isinstance(record.get("type"), str) for record in records)


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
    """The structs of a struct array of any size, or of a cell; empty places are left out."""
    if isinstance(value, StructArray):
        return value.records
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [item for item in value.ravel(order="F") if isinstance(item, dict)]
    return [value] if isinstance(value, dict) else []


def _strings(value: Any, what: str) -> list[str]:
    """A cell of names, one name, or the rows of a char matrix."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.ravel(order="F").tolist()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [item.strip() for item in value]
    if value is None or (isinstance(value, np.ndarray) and value.size == 0):
        return []
    raise FileFormatError(f"{what}: expected names, found {value!r}")


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
    records = _records(struct["layers"])
    values = _values(records, stored)
    for k, record in enumerate(records):
        name = _text(record, "name", f"layer {k + 1}")
        kind = _text(record, "type", f"layer {name!r}")
        params = _strings(record.get("params"), f"params of layer {name!r}")
        if kind.endswith("BatchNorm") and len(params) == 2:  # of the first releases, without moments
            params.append(f"{name}_moments")
            if params[0] in values:
                values[params[2]] = _no_moments(values[params[0]])
        arrays = [values.get(param) for param in params]
        layer, skipped = read_layer(kind, _block(kind, record.get("block")), arrays)
        unknown.setdefault(kind, set()).update(skipped)
        net.add_layer(
            name,
            layer,
            _strings(record["inputs"], f"inputs of layer {name!r}"),
            _strings(record["outputs"], f"outputs of layer {name!r}"),
            params[: len(layer.params)] if not isinstance(layer, Placeholder) else params,
        )
    for name, param in net.params.items():
        if values.get(name) is not None:
            param._own(values.pop(name))
        _param_settings(param, stored.get(name, {}))
    for record in _records(struct.get("vars")):
        variable = record.get("name")
        if isinstance(variable, str) and variable in net.vars and _is_number(record.get("precious")):
            net.vars[variable].precious = bool(np.ravel(record["precious"])[0])
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


def _values(records: list[dict[str, Any]], stored: Mapping[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of all parameters in our axes and of one type; the file's are let go of one by one.

    A parameter shared with a class we don't know has the axes that a class we know gives it.
    """
    roles: dict[str, str] = {}
    for k, record in enumerate(records):
        params = _strings(record.get("params"), f"params of layer {k + 1}")
        for param, role in zip(params, _roles(str(record.get("type")), params), strict=True):
            if roles.get(param, "value") == "value":
                roles[param] = role
    arrays = {name: stored[name].pop("value", None) for name in roles if name in stored}
    dtype = _main_dtype([a for a in arrays.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"])
    values = {}
    for name in list(arrays):
        array = _array(arrays.pop(name), roles[name], name)
        if array is not None:
            values[name] = array.astype(dtype, copy=False)
    return values


def _no_moments(multipliers: np.ndarray) -> np.ndarray:
    return np.tile(np.array([0, 1], multipliers.dtype), (len(multipliers), 1))


def _block(kind: str, block: Any) -> dict[str, Any]:
    """The properties of a layer; what MATLAB alone can read counts as absent where we know the class."""
    known = kind.removeprefix("dagnn.") in OPTIONS
    fields = _fields(block).items()
    return {key: simplify(v) for key, v in fields if not (known and isinstance(v, Opaque))}


def _is_number(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size > 0


def _array(value: Any, role: str, name: str) -> np.ndarray | None:
    if not _is_number(value):
        return None
    try:
        return read_param(role, value)
    except (FileFormatError, ValueError, TypeError) as error:
        raise FileFormatError(f"parameter {name!r}: {error}") from error


def _param_settings(param: Any, record: Mapping[str, Any]) -> None:
    for key, attribute in (("learningRate", "learning_rate"), ("weightDecay", "weight_decay")):
        if _is_number(record.get(key)):
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
    layers = [_simple_layer(record, k) for k, record in enumerate(_records(struct["layers"]))]
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
    known, weights = kind in BLOCKS, _weights(record)
    layer: dict[str, Any] = {"type": kind}
    for key, value in record.items():
        if key in ("type", *(("weights", "filters", "biases") if weights is not None else ())):
            continue
        if known and (key == "class" or isinstance(value, Opaque)):
            continue  # labels of the last training batch; a loss gets its labels when it is evaluated
        if known and key in _READERS and np.size(value):
            try:
                layer[key] = _READERS[key](value)
            except (TypeError, ValueError, OverflowError) as error:
                raise FileFormatError(f"layer {position + 1} ({kind}): {key} can't be {value!r}") from error
        else:
            layer[key] = simplify(value)
    if weights:
        roles = _ROLES.get(kind, ("value",) * len(weights))
        layer["weights"] = [
            _array(w, role, f"weight {k + 1} of layer {position + 1} ({kind})")
            for k, (w, role) in enumerate(zip(weights, roles, strict=False))
        ]
    return layer


def _weights(record: Mapping[str, Any]) -> list[Any] | None:
    """The cell `weights`, or the `filters` and `biases` of the first releases; None if there are none."""
    weights = record.get("weights")
    if isinstance(weights, np.ndarray) and (weights.dtype == object or not weights.size):
        return weights.ravel(order="F").tolist()
    if weights is None and ("filters" in record or "biases" in record):
        return [record[key] for key in ("filters", "biases") if key in record]
    return None


# ---- custom classes


def supply(net: DagNN, layers: Mapping[str, Any]) -> DagNN:
    """Replace the placeholders whose class `layers` names, with or without "dagnn." in front."""
    for name, node in list(net.layers.items()):
        if isinstance(node.layer, Placeholder):
            found = _lookup(layers, node.layer.class_name)
            if found is not None:
                net.replace_layer(name, _made(found, node.layer), node.params)
                _lay_out(net, name)
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


def _lay_out(net: DagNN, name: str) -> None:
    """Now that their roles are known, matrices become the banks or vectors they are."""
    node = net.layers[name]
    for param, spec in zip(node.params, node.layer.params, strict=False):
        value = net.params[param].value
        if value is not None and value.ndim == 2 and spec.role in ("filters", "biases", "multipliers"):
            net.params[param]._own(read_param(spec.role, value))
