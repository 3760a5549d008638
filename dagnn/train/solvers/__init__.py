"""Solvers: how parameters follow their derivatives."""

from .adam import Adam, AdamW
from .adaptive import AdaDelta, AdaGrad, RMSProp
from .sgd import SGD
from .solver import Solver, average

__all__ = ["SGD", "AdaDelta", "AdaGrad", "Adam", "AdamW", "RMSProp", "Solver", "average"]
