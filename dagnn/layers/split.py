"""Several ranges along one axis, as views: the inverse of Concat."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError, ShapeError
from ..geometry import ReceptiveField
from .layer import Layer, count
from .options import integers, whole
from .slice import along


@dataclass
class Split(Layer):
    """Cut the input along `axis` into outputs of the given `sizes`: views, nothing is copied.

    The derivative is one array into which each dzdy is written as a block; blocks without one are zero.

    >>> Split(axis=1, sizes=(3, 1)).output_shapes([(8, 4, 32, 32)])
    [(8, 3, 32, 32), (8, 1, 32, 32)]
    """

    axis: int
    sizes: tuple[int, ...]

    def __post_init__(self):
        self.axis = whole("axis", self.axis)
        self.sizes = integers("sizes", self.sizes, least=1)
        if not self.sizes:
            raise OptionError("sizes must name at least 1 output. Received: ()")

    @property
    def _blocks(self):
        ends = [sum(self.sizes[: k + 1]) for k in range(len(self.sizes))]
        return [along(self.axis, end - size, end) for size, end in zip(self.sizes, ends, strict=True)]

    def forward(self, ctx, inputs, params):
        self.output_shapes([x.shape for x in inputs])
        (x,) = inputs
        ctx.save(x.shape)
        return [x[block] for block in self._blocks]

    def backward(self, ctx, params, der_outputs):
        (x_shape,) = ctx.saved
        dtype = next(dzdy.dtype for dzdy in der_outputs if dzdy is not None)
        dzdx = ctx.backend.empty(x_shape, dtype)
        for block, dzdy in zip(self._blocks, der_outputs, strict=True):
            dzdx[block] = 0 if dzdy is None else dzdy
        return [dzdx], []

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        shape = tuple(input_shapes[0])
        if self.axis >= len(shape) or sum(self.sizes) != shape[self.axis]:
            raise ShapeError(
                f"input of shape {shape} does not split into {self.sizes} along axis {self.axis}"
            )
        return [(*shape[: self.axis], size, *shape[self.axis + 1 :]) for size in self.sizes]

    def receptive_fields(self, n_inputs):
        # Along height and width each output starts elsewhere, which one field per input can't say.
        return [ReceptiveField() if self.axis < 2 else None]
