"""Training."""

from .solvers import SGD, AdaDelta, AdaGrad, Adam, AdamW, RMSProp, Solver
from .trainer import Trainer, fit

__all__ = ["SGD", "AdaDelta", "AdaGrad", "Adam", "AdamW", "RMSProp", "Solver", "Trainer", "fit"]
