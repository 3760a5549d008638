"""What a layer is: a dataclass whose fields are its configuration, with a forward and a backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import OptionError, ShapeError
from ..geometry import ReceptiveField, Shape

if TYPE_CHECKING:
    from ..backends.base import Array, Backend


@dataclass(frozen=True)
class ParamSpec:
    """One parameter of a layer: its role and how training treats it.

    `train_method` "gradient" steps along the derivative; "average" keeps a running mean of what
    backward returns (batch-normalisation moments).
    """

    role: str
    learning_rate: float = 1.0
    weight_decay: float = 1.0
    train_method: str = "gradient"


class Context:
    """What one evaluation gives a layer: kernels, mode, randomness, and room for what backward needs.

    `wants_inputs` and `wants_params` say, already in forward, which derivatives will be asked for;
    where none is, `save` does nothing. `state` survives evaluations until `net.reset()`. `epilogue` are
    options for the layer's kernel, which then does what layers behind this one would (a sum, a ReLU); it is
    empty but for layers that are known to hand it on.
    """

    __slots__ = (
        "_drawn",
        "_rng",
        "backend",
        "epilogue",
        "mode",
        "output",
        "patches",
        "saved",
        "saves",
        "state",
        "wants_inputs",
        "wants_params",
    )

    def __init__(
        self,
        backend: Backend,
        mode: str = "train",
        rng: Callable[[], Any] | None = None,
        wants_inputs: tuple[bool, ...] = (),
        wants_params: tuple[bool, ...] = (),
        state: dict[str, Any] | None = None,
    ) -> None:
        self.backend = backend
        self.mode = mode
        self.wants_inputs = wants_inputs
        self.wants_params = wants_params
        self.state = {} if state is None else state
        self.epilogue: dict[str, Any] = {}
        self.output: Any = None  # of a kernel with epilogue: the Plan's, for backward
        self.patches: list[Any] | None = None  # a convolution's, where the Plan lets it keep them
        self.saved: tuple[Any, ...] = ()
        self._rng, self._drawn = rng, None
        self.saves = True in wants_inputs or True in wants_params

    def save(self, *arrays: Any) -> None:
        """Keep `arrays` for backward, which finds them in `saved`; a no-op when no backward follows."""
        if self.saves:
            self.saved = arrays

    @property
    def training(self) -> bool:
        """True in mode "train"."""
        return self.mode == "train"

    @property
    def rng(self) -> Any:
        """A generator keyed by the net's seed, the evaluation and the layer: the same on recomputation."""
        if self._drawn is None:
            self._drawn = self.backend.rng(0) if self._rng is None else self._rng()
        return self._drawn


@dataclass
class Layer:
    """Base class of all blocks. Subclass it as a dataclass: the fields are what a file stores.

    A layer owns no arrays and never sees the net: everything comes in through the arguments and
    leaves through the results, so one layer object may serve several places of several nets.

    >>> from dataclasses import dataclass
    >>> import numpy as np, dagnn
    >>> @dataclass
    ... class Square(dagnn.Layer):
    ...     gain: float = 1.0
    ...     def forward(self, ctx, inputs, params):
    ...         (x,) = inputs
    ...         ctx.save(x)
    ...         return [self.gain * x * x]
    ...     def backward(self, ctx, params, der_outputs):
    ...         (x,), (dzdy,) = ctx.saved, der_outputs
    ...         return [2 * self.gain * x * dzdy], []
    >>> dagnn.check_layer(Square(3.0), [(2, 3, 4, 4)])
    """

    param_specs: ClassVar[tuple[ParamSpec, ...]] = ()
    in_half: ClassVar[bool] = False
    """For classes of your own: whether they compute in 16 bits too, with `net.precision`. Else in float32."""
    initial_state: ClassVar[Mapping[str, float]] = {}
    """What an empty `ctx.state` stands for, where the layer begins with numbers."""
    capturable: ClassVar[bool] = False
    """Whether forward and backward do nothing but call `ctx.backend` and array functions, so that they may be
    recorded once and replayed with other numbers in the same arrays; see `DagNN.capture`."""

    @property
    def params(self) -> tuple[ParamSpec, ...]:
        """The parameters this configuration has, in order (a convolution without bias has one fewer)."""
        return self.param_specs

    @property
    def sums_samples(self) -> bool:
        """For losses: whether the output adds up what the samples of a batch contribute; else their mean."""
        return False

    def forward(self, ctx: Context, inputs: Sequence[Array], params: Sequence[Array]) -> list[Array]:
        """The outputs for `inputs`; `ctx.save(...)` what `backward` will need."""
        raise OptionError(f"{type(self).__name__} does not define forward")

    def backward(
        self, ctx: Context, params: Sequence[Array], der_outputs: Sequence[Array | None]
    ) -> tuple[Sequence[Array | None], Sequence[Array | None]]:
        """(der_inputs, der_params) from `der_outputs`; None stands for "no derivative"."""
        raise OptionError(f"{type(self).__name__} does not define backward")

    def init_params(self, rng: Any) -> list[Any]:
        """Fresh values for `params`, drawn from the NumPy generator `rng`."""
        if self.params:
            raise OptionError(f"{type(self).__name__} has parameters but does not define init_params")
        return []

    def output_shapes(self, input_shapes: Sequence[Shape]) -> list[Shape]:
        """Shapes of the outputs; here one output with the shape of the first input."""
        return [tuple(input_shapes[0])]

    def receptive_fields(self, n_inputs: int) -> list[ReceptiveField | None]:
        """Per input, what one output pixel sees of it; None where it sees no bounded window."""
        return [ReceptiveField()] * n_inputs

    def save(self) -> dict[str, Any]:
        """The configuration, as plain values for a file."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def load(cls, config: dict[str, Any]) -> Layer:
        """The layer `save` described."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(config) - known):
            options = ", ".join(map(repr, unknown))
            raise OptionError(f"{cls.__name__} has no option {options}. It has: {', '.join(sorted(known))}")
        return cls(**config)


@dataclass
class OneToOne(Layer):
    """Base class of blocks with one input and one output of its shape."""

    def output_shapes(self, input_shapes: Sequence[Shape]) -> list[Shape]:
        count(self, "input", len(input_shapes), 1)
        return [tuple(input_shapes[0])]


def check_fields(layer: Layer) -> None:
    """OptionError if the class has annotated options that are no fields: its `@dataclass` is missing."""
    for cls in type(layer).__mro__:
        if cls is Layer:
            break
        if not issubclass(cls, Layer) or "__init__" in vars(cls):  # a mixin, a dataclass, or its own doing
            continue
        kinds = get_annotations(cls).items()
        options = [
            n for n, kind in kinds if n[0] != "_" and not any(w in str(kind) for w in ("ClassVar", "Final"))
        ]
        if options:
            raise OptionError(
                f"{cls.__name__} has the option {options[0]!r} but is no dataclass: "
                f"put @dataclass above the class"
            )


def count(layer: Layer, what: str, n: int, *allowed: int) -> None:
    """ShapeError unless `n` arrays is one of the `allowed` numbers of them."""
    if n not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ShapeError(f"{type(layer).__name__} takes {expected} {what}, got {n}")
