"""MatConvNet's SimpleNN: a chain of layers in its own terms, computed by the layers and kernels of DagNN."""

from .chain import SimpleNN
from .custom import Result
from .layers import tidy

__all__ = ["Result", "SimpleNN", "tidy"]
