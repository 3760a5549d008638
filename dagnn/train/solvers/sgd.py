"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .solver import Solver, State, decayed

if TYPE_CHECKING:
    from ...backends.base import Array


@dataclass(eq=False)
class SGD(Solver):
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

    def update(
        self, value: Array, der: Array, state: State, learning_rate: float, weight_decay: float
    ) -> tuple[Array, State]:
        """(w, m) of one parameter after one step; see `Solver.update`."""
        d, m = decayed(value, der, weight_decay), state["m"]
        m *= self.momentum
        m -= d
        return value + learning_rate * (self.momentum * m - d if self.nesterov else m), {"m": m}
