"""Training."""

from .solvers import SGD

__all__ = ["SGD"]
