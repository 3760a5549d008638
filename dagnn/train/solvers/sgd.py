"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .elementwise import Elementwise, Rule, decayed_piece, scratch
from .solver import State


@dataclass(eq=False)
class SGD(Elementwise):
    """Stochastic gradient descent with momentum, in MatConvNet's convention (`cnn_train_dag.m`).

        d = dzdw + weight_decay w
        m = momentum m - d
        w = w + learning_rate m                        (nesterov: w + learning_rate (momentum m - d))

    `Solver` says which parameters move. PyTorch's `SGD` is the same with m of the other sign.

    >>> import numpy as np, dagnn
    >>> net = dagnn.DagNN()
    >>> net.add_layer("fc", dagnn.Conv(size=(1, 1, 1, 1), has_bias=False), "x", "y")
    >>> net.params["fc_filters"].value = np.full((1, 1, 1, 1), 3.0)
    >>> solver = dagnn.train.SGD(learning_rate=0.5, momentum=0, weight_decay=0)
    >>> out = net.eval({"x": np.ones((1, 1, 1, 1))}, {"y": 1})
    >>> solver.step(net)
    >>> net.params["fc_filters"].value.item()
    2.5

    State: m.
    """

    learning_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 0.0005
    nesterov: bool = False

    slots: ClassVar[tuple[str, ...]] = ("m",)
    kernel: ClassVar[str] = "sgd"

    def numbers(self, state: State, learning_rate: float, weight_decay: float) -> tuple[float, ...]:
        """(learning rate, weight decay, momentum, 1 for Nesterov's)"""
        return learning_rate, weight_decay, self.momentum, float(self.nesterov)

    def rule(self, state: State, learning_rate: float, weight_decay: float) -> Rule:
        """A step on pieces of (new w, w, dzdw, m); see `Elementwise.rule`."""
        momentum, nesterov = self.momentum, self.nesterov

        def work(new, value, der, m):
            step = scratch(m)
            d = decayed_piece(value, der, weight_decay, out=step)
            np.multiply(m, momentum, out=m)
            np.subtract(m, d, out=m)
            if nesterov:
                ahead = scratch(m)
                np.multiply(m, momentum, out=ahead)
                np.subtract(ahead, d, out=step)
                np.multiply(step, learning_rate, out=step)
            else:
                np.multiply(m, learning_rate, out=step)
            np.add(value, step, out=new)

        return work
