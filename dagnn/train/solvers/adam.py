"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .adaptive import against, running
from .elementwise import Elementwise, Rule, decayed_piece, scratch
from .solver import State

if TYPE_CHECKING:
    from ...backends.base import Array


@dataclass(eq=False)
class Adam(Elementwise):
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
    kernel: ClassVar[str] = "adam"

    def initial(self, value: Array) -> State:
        """Zeros, and no step taken."""
        return super().initial(value) | {"t": 0}

    def numbers(self, state: State, learning_rate: float, weight_decay: float) -> tuple[float, ...]:
        """(learning rate / (1 - beta1^t), weight decay, beta1, beta2, epsilon, 1 / (1 - beta2^t), 1)"""
        rate = learning_rate / (1 - self.beta1 ** state["t"])
        correction = 1 / (1 - self.beta2 ** state["t"])
        return rate, weight_decay, self.beta1, self.beta2, self.epsilon, correction, 1.0

    def rule(self, state: State, learning_rate: float, weight_decay: float) -> Rule:
        """A step on pieces of (new w, w, dzdw, m, v); see `Elementwise.rule`."""
        rate, *_, correction, _ = self.numbers(state, learning_rate, weight_decay)

        def work(new, value, der, m, v):
            one, two = scratch(m), scratch(m)
            d = decayed_piece(value, der, weight_decay, out=one)
            running(m, self.beta1, d, two)
            running(v, self.beta2, np.multiply(d, d, out=one), two)
            np.multiply(v, correction, out=one)
            np.subtract(value, against(m, one, rate, self.epsilon, two), out=new)

        return work

    def _counted(self, state: State) -> State:
        return state | {"t": state["t"] + 1}


@dataclass(eq=False)
class AdamW(Adam):
    """Adam whose weight decay does not pass through the running means.

        w = (1 - learning_rate weight_decay) w, then as `Adam` without weight decay

    PyTorch's `AdamW` is the same; MatConvNet has none.

    State: m, v, t. Source: Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    weight_decay: float = 0.01

    kernel: ClassVar[str] = "adam"

    def numbers(self, state: State, learning_rate: float, weight_decay: float) -> tuple[float, ...]:
        """Those of `Adam` without weight decay, and 1 - learning rate x weight decay instead of 1."""
        *adam, _ = super().numbers(state, learning_rate, 0.0)
        return *adam, 1 - learning_rate * weight_decay

    def rule(self, state: State, learning_rate: float, weight_decay: float) -> Rule:
        """A step on pieces of (new w, w, dzdw, m, v); see `Elementwise.rule`."""
        adam = super().rule(state, learning_rate, 0.0)
        if not weight_decay:
            return adam

        def work(new, value, der, m, v):
            np.multiply(value, 1 - learning_rate * weight_decay, out=new)
            adam(new, new, der, m, v)

        return work
