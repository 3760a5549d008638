"""Layers of classes the user supplies, from the options a file has for them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..errors import OptionError, UnknownFieldWarning
from ..layers.layer import Layer

# Properties of MatConvNet's layers that steer its implementation and say nothing about the function computed.
WITHOUT_MEANING = frozenset(
    ("opts", "useShortCircuit", "numInputs", "cuDNN", "exBackprop", "mask", "average", "numAveraged")
)


def make_custom(layer_class: type[Layer], config: Mapping[str, Any]) -> Layer:
    """A layer of `layer_class`, whose options may be spelt as here or as in MATLAB (`hasBias`).

    What the class has no option for is left out with an UnknownFieldWarning.
    """
    try:
        return layer_class.load(dict(config))
    except OptionError:
        known = {f.name for f in fields(layer_class)} if is_dataclass(layer_class) else set()
        names = {key: key if key in known else snake_case(key) for key in config}
        left_out = sorted(key for key, name in names.items() if name not in known)
        if not left_out and list(names) == list(names.values()):
            raise
    if unknown := [key for key in left_out if key not in WITHOUT_MEANING]:
        warnings.warn(
            f"{layer_class.__name__} has no option for {', '.join(unknown)}: left out",
            UnknownFieldWarning,
            stacklevel=2,
        )
    return layer_class.load({name: config[key] for key, name in names.items() if name in known})


def snake_case(name: str) -> str:
    """MATLAB's camelCase in our spelling.

    >>> snake_case("hasBias"), snake_case("numGroups"), snake_case("size")
    ('has_bias', 'num_groups', 'size')
    """
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
