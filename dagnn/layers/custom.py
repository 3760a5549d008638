"""A layer made of two functions (MatConvNet's SimpleNN layer type `custom`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import OptionError
from .layer import Layer


def no_backward(ctx, params, der_outputs):
    """Stands for a backward that was not given."""
    raise OptionError("Custom has no backward: give Custom(forward, backward) to take derivatives through it")


@dataclass
class Custom(Layer):
    """What the functions `forward` and `backward` compute: the methods of a layer, without the class.

    They are called as forward(ctx, inputs, params) and backward(ctx, params, der_outputs). A file does not
    store them; it stores the names that `layers=` gives when saving and loading. For options, parameters
    or output shapes other than the first input's, write a subclass of `dagnn.Layer`.

    >>> double = Custom(
    ...     forward=lambda ctx, inputs, params: [2 * inputs[0]],
    ...     backward=lambda ctx, params, ders: ([2 * ders[0]], []),
    ... )
    >>> double.forward(None, [21], [])
    [42]
    """

    forward: Callable[..., Any] = field()  # required; the inherited method is no default
    backward: Callable[..., Any] | None = None  # type: ignore[assignment]

    def __post_init__(self):
        self.backward = self.backward or no_backward
        for role in ("forward", "backward"):
            function = getattr(self, role)
            if not callable(function) or function is getattr(Layer, role):
                raise OptionError(f"{role} must be a function. Received: {function!r}")

    def save(self):
        backward = None if self.backward is no_backward else self.backward
        return {"forward": self.forward, "backward": backward}

    def receptive_fields(self, n_inputs):
        return [None] * n_inputs
