"""Solvers: how parameters follow their derivatives."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from ..net import DagNN


class SGD:
    """Stochastic gradient descent with momentum, in MatConvNet's convention.

    For every trainable parameter w that has a derivative, with its own learning rate and weight decay
    multiplying the solver's:

        d = dzdw + weight_decay w
        m = momentum m - d
        w = w + learning_rate m                        (nesterov: w + learning_rate (momentum m - d))

    Parameters trained by "average" (batch-normalisation moments) move towards what backward returned for
    them, r = their own learning rate: w = (1 - r) w + r dzdw / (number of layers they feed).

    >>> import numpy as np, dagnn
    >>> from dagnn.train import SGD
    >>> net = dagnn.DagNN()
    >>> net.add_layer("fc", dagnn.Conv(size=(1, 1, 1, 1), has_bias=False), "x", "y")
    >>> net.params["fc_filters"].value = np.full((1, 1, 1, 1), 3.0)
    >>> solver = SGD(learning_rate=0.5, momentum=0, weight_decay=0)
    >>> out = net.eval({"x": np.ones((1, 1, 1, 1))}, {"y": 1})
    >>> solver.step(net)
    >>> net.params["fc_filters"].value.item()
    2.5

    Attributes
    ----------
    momenta : m of every parameter by name; it appears with the first step.
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        nesterov: bool = False,
    ) -> None:
        if not (learning_rate >= 0 and 0 <= momentum < 1 and weight_decay >= 0):
            raise OptionError(
                "learning_rate and weight_decay must be at least 0, momentum in [0, 1). Received: "
                f"learning_rate={learning_rate}, momentum={momentum}, weight_decay={weight_decay}"
            )
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self.momenta: dict[str, Any] = {}

    def step(self, net: DagNN) -> None:
        """Move the parameters of `net` along the derivatives its last evaluation left."""
        fanout = Counter(name for node in net.layers.values() for name in node.params)
        for name, param in net.params.items():
            if not param.trainable or param.der is None:
                continue
            if param.train_method == "average":
                value = average(param.value, param.der, float(param.learning_rate), fanout[name])
            else:
                value, self.momenta[name] = descend(
                    param.value,
                    param.der,
                    self.momenta.get(name, 0.0),
                    # Python's floats, for NumPy's would make float64 of float32.
                    learning_rate=float(self.learning_rate * param.learning_rate),
                    momentum=float(self.momentum),
                    weight_decay=float(self.weight_decay * param.weight_decay),
                    nesterov=self.nesterov,
                )
            param._own(value)


def descend(
    value: Any,
    der: Any,
    m: Any,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> tuple[Any, Any]:
    """(value, m) of one parameter after one step of `SGD`; `m` is 0.0 before the first."""
    d = der + weight_decay * value if weight_decay else der
    m = momentum * m - d
    step = momentum * m - d if nesterov else m
    return value + learning_rate * step, m


def average(value: Any, new: Any, rate: float, fanout: int) -> Any:
    """A running mean: (1 - rate) value + rate new / fanout."""
    return (1 - rate) * value + (rate / fanout) * new
