"""What stands in for a layer whose class is not known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import PlaceholderError
from .layer import Layer


@dataclass
class Placeholder(Layer):
    """Keeps a layer of unknown class as a file described it: its `class_name` and its `config`.

    A net with placeholders loads, can be looked at, edited and saved; computing one raises
    PlaceholderError, which says how to supply the class.

    >>> Placeholder("XCorr", {"bias": 1}).save()
    {'bias': 1}
    """

    class_name: str
    config: dict[str, Any] = field(default_factory=dict)

    def forward(self, ctx, inputs, params):
        raise self._error()

    def backward(self, ctx, params, der_outputs):
        raise self._error()

    def output_shapes(self, input_shapes):
        raise self._error()

    def _error(self):
        if self.class_name == "Custom":
            names = ", ".join(f'"{name}": {name}' for name in self.config.values() if name)
            return PlaceholderError(
                f"the functions of a Custom layer are not known. Supply them with\n"
                f"    net = dagnn.load(path, layers={{{names}}})"
            )
        name = self.class_name.rpartition(".")[2]
        return PlaceholderError(
            f"the class {self.class_name!r} is not known. Supply it with\n"
            f"    @dataclass\n"
            f"    class {name}(dagnn.Layer): ...\n"
            f'    net = dagnn.load(path, layers={{"{self.class_name}": {name}}})'
        )

    def receptive_fields(self, n_inputs):
        return [None] * n_inputs

    def save(self):
        """The configuration alone, as the file had it; `class_name` is the layer's type there."""
        return self.config
