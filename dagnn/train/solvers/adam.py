"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .adaptive import scaled
from .solver import Solver, State, decayed

if TYPE_CHECKING:
    from ...backends.base import Array


@dataclass(eq=False)
class Adam(Solver):
    """Adam, as in algorithm 1 of its paper.

        d = dzdw + weight_decay w
        t = t + 1
        m = beta1 m + (1 - beta1) d,     v = beta2 v + (1 - beta2) d²
        w = w - learning_rate m / (1 - beta1^t) / (√(v / (1 - beta2^t)) + epsilon)

    PyTorch's `Adam` is the same. MatConvNet's `+solver/adam.m` adds epsilon before it corrects v, which is
    this with epsilon / √(1 - beta2^t): it matters for derivatives not far above epsilon only.
    t counts the steps of each parameter by itself, so that one unfrozen late starts properly.

    State: m, v, t. Source: Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """

    learning_rate: float = 0.001
    weight_decay: float = 0.0005
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def initial(self, value: Array) -> State:
        """Zeros, and no step taken."""
        return super().initial(value) | {"t": 0}

    def update(
        self, value: Array, der: Array, state: State, learning_rate: float, weight_decay: float
    ) -> tuple[Array, State]:
        """(w, {m, v, t}) of one parameter after one step; see `Solver.update`."""
        d, m, v, t = decayed(value, der, weight_decay), state["m"], state["v"], state["t"] + 1
        m *= self.beta1
        m += (1 - self.beta1) * d
        v *= self.beta2
        v += (1 - self.beta2) * d * d
        rate = learning_rate / (1 - self.beta1**t)
        return value - scaled(m, v / (1 - self.beta2**t), rate, self.epsilon), {"m": m, "v": v, "t": t}


@dataclass(eq=False)
class AdamW(Adam):
    """Adam whose weight decay does not pass through the running means.

        w = (1 - learning_rate weight_decay) w, then as `Adam` without weight decay

    PyTorch's `AdamW` is the same; MatConvNet has none.

    State: m, v, t. Source: Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    weight_decay: float = 0.01

    def update(
        self, value: Array, der: Array, state: State, learning_rate: float, weight_decay: float
    ) -> tuple[Array, State]:
        """(w, {m, v, t}) of one parameter after one step; see `Solver.update`."""
        shrunk = (1 - learning_rate * weight_decay) * value if weight_decay else value
        return super().update(shrunk, der, state, learning_rate, 0.0)
