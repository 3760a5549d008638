"""Solvers that divide each derivative by a running size of its own: AdaGrad, RMSProp, AdaDelta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .elementwise import Elementwise, Rule, decayed_piece, scratch
from .solver import Solver, State

if TYPE_CHECKING:
    from ...backends.base import Array


class Adaptive(Elementwise):
    """Base of solvers with the options `rho` and `epsilon`."""

    rho: float
    epsilon: float

    def numbers(self, state: State, learning_rate: float, weight_decay: float) -> tuple[float, ...]:
        """(learning rate, weight decay, rho, epsilon)"""
        return learning_rate, weight_decay, self.rho, self.epsilon


@dataclass(eq=False)
class AdaGrad(Adaptive):
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
    kernel: ClassVar[str] = "adagrad"
    limits: ClassVar[dict[str, tuple[float, float]]] = Solver.limits | {"rho": (0, np.nextafter(1, 2))}

    def rule(self, state: State, learning_rate: float, weight_decay: float) -> Rule:
        """A step on pieces of (new w, w, dzdw, s); see `Elementwise.rule`."""

        def work(new, value, der, s):
            one, two = scratch(s), scratch(s)
            d = decayed_piece(value, der, weight_decay, out=one)
            if self.rho != 1:
                np.multiply(s, self.rho, out=s)
            np.add(s, np.multiply(d, d, out=two), out=s)
            np.subtract(value, against(d, s, learning_rate, self.epsilon, two), out=new)

        return work


@dataclass(eq=False)
class RMSProp(Adaptive):
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
    kernel: ClassVar[str] = "rmsprop"

    def rule(self, state: State, learning_rate: float, weight_decay: float) -> Rule:
        """A step on pieces of (new w, w, dzdw, s); see `Elementwise.rule`."""

        def work(new, value, der, s):
            one, two = scratch(s), scratch(s)
            d = decayed_piece(value, der, weight_decay, out=one)
            running(s, self.rho, np.multiply(d, d, out=two), two)
            np.subtract(value, against(d, s, learning_rate, self.epsilon, two), out=new)

        return work


@dataclass(eq=False)
class AdaDelta(Adaptive):
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
    kernel: ClassVar[str] = "adadelta"

    def rule(self, state: State, learning_rate: float, weight_decay: float) -> Rule:
        """A step on pieces of (new w, w, dzdw, s, u); see `Elementwise.rule`."""

        def work(new, value, der, s, u):
            one, two = scratch(s), scratch(s)
            d = decayed_piece(value, der, weight_decay, out=one)
            running(s, self.rho, np.multiply(d, d, out=two), two)
            ratio = np.add(u, self.epsilon, out=two)
            below = scratch(s)
            np.divide(ratio, np.add(s, self.epsilon, out=below), out=ratio)
            delta = np.multiply(np.sqrt(ratio, out=ratio), d, out=two)
            running(u, self.rho, np.multiply(delta, delta, out=below), below)
            np.multiply(delta, learning_rate, out=delta)
            np.subtract(value, delta, out=new)

        return work


def running(mean: Array, rate: float, new: Array, spare: Array) -> None:
    """mean = rate mean + (1 - rate) new, by way of `spare`, which may be `new`."""
    np.multiply(mean, rate, out=mean)
    np.add(mean, np.multiply(new, 1 - rate, out=spare), out=mean)


def against(d: Array, s: Array, learning_rate: float, epsilon: float, out: Array) -> Array:
    """learning_rate d / (√s + epsilon), in `out`."""
    size = np.sqrt(s, out=out)
    size += epsilon
    np.divide(d, size, out=out)
    return np.multiply(out, learning_rate, out=out)
