"""Training."""

from .solvers import SGD, AdaDelta, AdaGrad, Adam, AdamW, RMSProp, Solver

__all__ = ["SGD", "AdaDelta", "AdaGrad", "Adam", "AdamW", "RMSProp", "Solver"]
