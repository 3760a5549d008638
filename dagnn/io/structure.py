"""A network as JSON and arrays, and back. What it looks like is written down in docs/file-format.md.

Nothing here touches a file: `describe` leaves the arrays in a dict by dataset name, and `build` asks a
function for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import is_floating
from ..errors import DagnnError, FileFormatError, OptionError, shorten
from ..layers import BUILTIN, Custom, Placeholder
from ..layers.layer import Layer
from .custom import make_custom
from .values import Encoder, ReadArray, decode

if TYPE_CHECKING:
    from ..net import DagNN
    from ..variables import Node, Param

SCHEMA = 1  # of the files written; greater ones are refused

Names = Mapping[str, Any]
Kind = type | tuple[type, ...]


# ---- network to text


def describe(net: DagNN, layers: Names | None, extra: Names | None) -> tuple[bytes, dict[str, np.ndarray]]:
    """The structure of `net` as text behind its SHA-256, and all arrays by the name of their dataset."""
    from .. import __version__

    encoder = Encoder()
    types = _Types(layers)
    structure = {
        "format": "dagnn",
        "schema": SCHEMA,
        "writer": f"dagnn {__version__}",
        "settings": {
            "mode": net.mode,
            "conserve_memory": net.conserve_memory,
            "accumulate_param_ders": bool(net.accumulate_param_ders),
            "seed": _number(encoder, net.seed, "net.seed", int),
            "evaluation": _number(encoder, net.evaluation, "net.evaluation", int),
        },
        "layers": [_describe_layer(node, types, encoder) for node in net.layers.values()],
        "vars": [{"name": name, "precious": var.precious} for name, var in net.vars.items()],
        "params": [_describe_param(net, param, encoder) for param in net.params.values()],
        "meta": encoder.exact(dict(net.meta), "net.meta", "meta"),
        "extra": encoder.exact(dict(extra or {}), "extra", "extra"),
    }
    text = json.dumps(structure, allow_nan=False, separators=(",", ":")).encode("ascii")
    return hashlib.sha256(text).hexdigest().encode("ascii") + b"\n" + text, encoder.arrays


def _describe_layer(node: Node, types: _Types, encoder: Encoder) -> dict[str, Any]:
    type_name, config = types.describe(node)
    label = f"Layer {node.name!r} ({type_name})"
    if not isinstance(config, dict):
        raise OptionError(f"{label}: save() must return a dict. Received: {config!r}")
    return {
        "name": node.name,
        "type": type_name,
        "config": encoder.simple(config, f"{label}: save()", "layers", node.name),
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
        "params": list(node.params),
    }


def _describe_param(net: DagNN, param: Param, encoder: Encoder) -> dict[str, Any]:
    label = f"net.params[{param.name!r}]"
    value = None if param.value is None else net.backend.to_numpy(param.value)
    return {
        "name": param.name,
        "value": encoder.exact(value, label, "params", param.name),
        "learning_rate": _number(encoder, param.learning_rate, f"{label}.learning_rate", int, float),
        "weight_decay": _number(encoder, param.weight_decay, f"{label}.weight_decay", int, float),
        "train_method": param.train_method,
        "trainable": param.trainable,
    }


def _number(encoder: Encoder, value: Any, label: str, *kinds: type) -> Any:
    number = value.item() if isinstance(value, np.generic) else value
    if not isinstance(number, kinds) or isinstance(number, bool):
        raise OptionError(f"{label} must be {_either(kinds)} to be saved. Received: {value!r}")
    return encoder.simple(number, label)


class _Types:
    """The names under which one file stores the classes and functions of its layers."""

    def __init__(self, layers: Names | None) -> None:
        self.named = named(layers)
        self.used: dict[str, type] = {}

    def describe(self, node: Node) -> tuple[str, dict[str, Any]]:
        layer = node.layer
        if isinstance(layer, Placeholder):
            return self._unknown(node.name, layer)
        if type(layer) is Custom:
            return "Custom", self._function_names(node.name, layer.save())
        return self._class(node.name, type(layer)), layer.save()

    def _class(self, layer: str, cls: type) -> str:
        if BUILTIN.get(cls.__name__) is cls:
            return cls.__name__
        name = next((key for key, value in self.named.items() if value is cls), cls.__name__)
        taken = BUILTIN.get(name) or self.used.setdefault(name, cls)
        if taken is not cls:
            mine, other = (f"{c.__module__}.{c.__qualname__}" for c in (cls, taken))
            raise OptionError(
                f"Layer {layer!r}: the class {mine} would be saved as {name!r}, the name of {other}. Choose "
                f"another name: net.save(path, layers={{'My{name}': {cls.__name__}}})"
            )
        return name

    def _function_names(self, layer: str, functions: dict[str, Any]) -> dict[str, str | None]:
        names: dict[str, str | None] = {}
        for role, function in functions.items():
            keys = (key for key, value in self.named.items() if value == function)
            names[role] = next(keys, None) if function is not None else None
        if nameless := [role for role, f in functions.items() if f is not None and names[role] is None]:
            examples = (names[role] or f"my_{role}" for role, f in functions.items() if f is not None)
            raise OptionError(
                f"Layer {layer!r} (Custom): a file keeps no functions, only names for them, and "
                f"{' and '.join(nameless)} has none. Give the names here and again to dagnn.load: "
                f"net.save(path, layers={{{', '.join(f'{name!r}: {name}' for name in examples)}}})"
            )
        return names

    def _unknown(self, layer: str, placeholder: Placeholder) -> tuple[str, dict[str, Any]]:
        name, config = placeholder.class_name, placeholder.config
        if name in BUILTIN:
            try:
                make_layer(name, config, f"Layer {layer!r}", {})
            except FileFormatError as error:
                raise OptionError(f"{error}; as a Placeholder it could not be loaded again") from error
        return name, config


def named(layers: Names | None) -> dict[str, Any]:
    """`layers=` with bare names as keys; OptionError where one means something else already."""
    result: dict[str, Any] = {}
    for key, value in (layers or {}).items():
        name = key.removeprefix("dagnn.")
        if name in BUILTIN:
            raise OptionError(f"layers= gives a meaning to {key!r}, which is built in. Choose another name")
        if result.setdefault(name, value) is not value:
            raise OptionError(f"layers= gives two meanings to {name!r}, with and without 'dagnn.'")
        if not callable(value):
            raise OptionError(f"layers[{key!r}] must be a layer class or a function. Received: {value!r}")
    return result


# ---- text to network


def parse(text: bytes) -> dict[str, Any]:
    """The structure in `text`, checked against its SHA-256 and for a schema that is known."""
    digest, _, body = text.partition(b"\n")
    found = hashlib.sha256(body).hexdigest().encode("ascii")
    if digest != found:
        raise FileFormatError(
            f"dataset 'structure' is damaged: its SHA-256 is {found.decode()}, but it says {digest[:64]!r}"
        )
    structure = json.loads(body, object_pairs_hook=_object, parse_constant=_constant)
    if not isinstance(structure, dict) or structure.get("format") != "dagnn":
        raise FileFormatError("dataset 'structure' does not describe a dagnn network")
    check_schema(structure.get("schema"))
    return structure


def check_schema(schema: Any) -> None:
    """FileFormatError unless this version of dagnn reads the schema."""
    if type(schema) is not int or schema < 1:
        raise FileFormatError(f"the schema must be a positive integer. Received: {schema!r}")
    if schema > SCHEMA:
        raise FileFormatError(
            f"the file has schema {schema} and this dagnn reads up to {SCHEMA}: it takes a newer dagnn"
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise FileFormatError(f"dataset 'structure' has a key twice: {shorten(key for key, _ in pairs)}")
    return result


def _constant(word: str) -> None:
    raise FileFormatError(f"dataset 'structure' has the number {word}, which JSON does not have")


def build(structure: dict[str, Any], read: ReadArray, layers: Names) -> DagNN:
    """The network that `describe` described; `layers` as `named` returns it."""
    from ..net import DagNN

    settings, entries, variables, params, meta = _fields(
        structure, "structure",
        settings=dict, layers=list, vars=list, params=list, meta=dict,
        format=str, schema=int, writer=str, extra=dict,
    )[:5]  # fmt: skip
    net = DagNN()
    for k, entry in enumerate(entries):
        _add_layer(net, entry, f"layers[{k}]", read, layers)
    # Layers name their variables and parameters in one order, a net that was edited had another.
    net._vars = _in_order(net._vars, variables, "vars")
    net._params = _in_order(net._params, params, "params")
    for entry in variables:
        name, net.vars[name].precious = _fields(entry, f"vars[{entry['name']!r}]", name=str, precious=bool)
    for entry in params:
        _set_param(net.params[entry["name"]], entry, read)
    net.meta = _decode_as(dict, meta, "meta", read)
    net.mode, net.conserve_memory, net.accumulate_param_ders, seed, evaluation = _fields(
        settings, "settings",
        mode=str, conserve_memory=bool, accumulate_param_ders=bool, seed=(int, dict), evaluation=(int, dict),
    )  # fmt: skip
    net.seed, net.evaluation = (_decode_as(int, n, "settings", read) for n in (seed, evaluation))
    return net


def decode_extra(structure: dict[str, Any], read: ReadArray) -> dict[str, Any]:
    """What was saved next to the network."""
    return _decode_as(dict, structure.get("extra"), "extra", read)


def make_layer(type_name: str, config: dict[str, Any], label: str, layers: Names) -> Layer:
    """The layer of that type; a Placeholder if nobody knows the type or a function it needs."""
    if type_name == "Custom":
        if not all(name is None or (isinstance(name, str) and name in layers) for name in config.values()):
            return Placeholder(type_name, config)
        config = {role: name if name is None else layers[name] for role, name in config.items()}
    cls = BUILTIN.get(type_name) or layers.get(type_name.removeprefix("dagnn."))
    if cls is None:
        return Placeholder(type_name, config)
    if not (isinstance(cls, type) and issubclass(cls, Layer)):
        raise FileFormatError(f"{label}: the type {type_name!r} must be a layer class. layers= has: {cls!r}")
    try:
        return cls.load(config) if type_name in BUILTIN else make_custom(cls, config)
    except Exception as error:  # a layer's own checks, whatever they raise
        raise FileFormatError(f"{label}: {type_name} refuses the options {_cut(config)}: {error}") from error


def _add_layer(net: DagNN, entry: Any, label: str, read: ReadArray, layers: Names) -> None:
    name, type_name, config, *connections = _fields(
        entry, label, name=str, type=str, config=dict, inputs=list, outputs=list, params=list
    )
    label = f"{label}, layer {name!r}"
    for names in connections:
        for connected in names:
            _typed(connected, str, label)
    layer = make_layer(type_name, _decode_as(dict, config, f"{label}, config", read), label, layers)
    try:
        net.add_layer(name, layer, *connections)
    except DagnnError as error:
        raise FileFormatError(f"{label}: {error}") from error


def _set_param(param: Param, entry: Any, read: ReadArray) -> None:
    label = f"params[{param.name!r}]"
    _, value, learning_rate, weight_decay, param.train_method, param.trainable = _fields(
        entry, label,
        name=str, value=(dict, NoneType), learning_rate=(int, float, dict), weight_decay=(int, float, dict),
        train_method=str, trainable=bool,
    )  # fmt: skip
    param.learning_rate = _decode_as((int, float), learning_rate, label, read)
    param.weight_decay = _decode_as((int, float), weight_decay, label, read)
    if value is not None:
        array = _decode_as(np.ndarray, value, label, read)
        if not is_floating(array.dtype):
            raise FileFormatError(f"{label} holds {array.dtype}; the value of a parameter is floating")
        param.value = array


def _in_order(things: dict[str, Any], entries: list[Any], label: str) -> dict[str, Any]:
    names = [_typed(_typed(entry, dict, label).get("name"), str, label) for entry in entries]
    if sorted(names) != sorted(things):
        odd = sorted(set(names) ^ set(things)) or sorted({name for name in names if names.count(name) > 1})
        raise FileFormatError(f"{label} and what the layers name disagree on {shorten(map(repr, odd))}")
    return {name: things[name] for name in names}


def _decode_as(kind: Kind, value: Any, label: str, read: ReadArray) -> Any:
    return _typed(decode(value, label, read), kind, label)


def _fields(value: Any, label: str, /, **kinds: Kind) -> list[Any]:
    """The items of an object that must have just these keys, in their order."""
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        found = shorten(value) if isinstance(value, dict) else _cut(value)
        raise FileFormatError(f"{label} must have the keys {', '.join(kinds)}. Found: {found}")
    return [_typed(value[key], kind, f"{label}, {key}") for key, kind in kinds.items()]


def _typed(value: Any, kind: Kind, label: str) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds:
        raise FileFormatError(f"{label} must be {_either(kinds)}. Found: {_cut(value)}")
    return value


def _either(kinds: tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else text[:97] + "..."
