"""Solvers that divide each derivative by a running size of its own: AdaGrad, RMSProp, AdaDelta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .solver import Solver, State, decayed

if TYPE_CHECKING:
    from ...backends.base import Array


@dataclass(eq=False)
class AdaGrad(Solver):
    """AdaGrad, as MatConvNet's `+solver/adagrad.m`.

        d = dzdw + weight_decay w
        s = rho s + d²
        w = w - learning_rate d / (√s + epsilon)

    At rho = 1 the steps shrink for ever; below, s forgets. PyTorch's `Adagrad` has no rho and a default
    learning rate of 0.01; otherwise it is the same.

    State: s. Source: Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", JMLR 2011.
    """

    learning_rate: float = 0.001
    weight_decay: float = 0.0005
    rho: float = 1.0
    epsilon: float = 1e-10

    slots: ClassVar[tuple[str, ...]] = ("s",)
    limits: ClassVar[dict[str, tuple[float, float]]] = Solver.limits | {"rho": (0, np.nextafter(1, 2))}

    def update(
        self, value: Array, der: Array, state: State, learning_rate: float, weight_decay: float
    ) -> tuple[Array, State]:
        """(w, s) of one parameter after one step; see `Solver.update`."""
        d, s = decayed(value, der, weight_decay), state["s"]
        s *= self.rho
        s += d * d
        return value - scaled(d, s, learning_rate, self.epsilon), {"s": s}


@dataclass(eq=False)
class RMSProp(Solver):
    """RMSProp, as MatConvNet's `+solver/rmsprop.m`.

        d = dzdw + weight_decay w
        s = rho s + (1 - rho) d²
        w = w - learning_rate d / (√s + epsilon)

    PyTorch's `RMSprop` calls rho alpha and has a default learning rate of 0.01; without its momentum and
    centring it is the same. s starts from 0, so that first steps are up to 1 / √(1 - rho) times longer.

    State: s. Source: Hinton, "Neural networks for machine learning", lecture 6e, 2012.
    """

    learning_rate: float = 0.001
    weight_decay: float = 0.0005
    rho: float = 0.99
    epsilon: float = 1e-8

    slots: ClassVar[tuple[str, ...]] = ("s",)

    def update(
        self, value: Array, der: Array, state: State, learning_rate: float, weight_decay: float
    ) -> tuple[Array, State]:
        """(w, s) of one parameter after one step; see `Solver.update`."""
        d, s = decayed(value, der, weight_decay), state["s"]
        s *= self.rho
        s += (1 - self.rho) * d * d
        return value - scaled(d, s, learning_rate, self.epsilon), {"s": s}


@dataclass(eq=False)
class AdaDelta(Solver):
    """AdaDelta, as MatConvNet's `+solver/adadelta.m`.

        d = dzdw + weight_decay w
        s = rho s + (1 - rho) d²
        δ = √((u + epsilon) / (s + epsilon)) d
        u = rho u + (1 - rho) δ²
        w = w - learning_rate δ

    The method finds its own step length: leave learning_rate at 1. MatConvNet ignores it, a parameter's
    own factor included; here, as in PyTorch's `Adadelta` (which is the same), it multiplies the step.

    State: s, u. Source: Zeiler, "ADADELTA: an adaptive learning rate method", arXiv:1212.5701, 2012.
    """

    learning_rate: float = 1.0
    weight_decay: float = 0.0005
    rho: float = 0.9
    epsilon: float = 1e-6

    slots: ClassVar[tuple[str, ...]] = ("s", "u")

    def update(
        self, value: Array, der: Array, state: State, learning_rate: float, weight_decay: float
    ) -> tuple[Array, State]:
        """(w, {s, u}) of one parameter after one step; see `Solver.update`."""
        d, s, u = decayed(value, der, weight_decay), state["s"], state["u"]
        s *= self.rho
        s += (1 - self.rho) * d * d
        delta = np.sqrt((u + self.epsilon) / (s + self.epsilon)) * d
        u *= self.rho
        u += (1 - self.rho) * delta * delta
        return value - learning_rate * delta, {"s": s, "u": u}


def scaled(d: Array, s: Array, learning_rate: float, epsilon: float) -> Array:
    """learning_rate d / (√s + epsilon)."""
    size = np.sqrt(s)
    size += epsilon
    return learning_rate * d / size
