"""MatConvNet's DagNN for Python: neural networks that are directed acyclic graphs, on NumPy or CuPy."""

from .backends.numpy.threads import num_threads, set_num_threads
from .check import check_layer
from .errors import (
    BackendError,
    CheckError,
    DagnnError,
    DTypeError,
    FileFormatError,
    GraphError,
    LabelError,
    OptionError,
    PlaceholderError,
    ReleasedError,
    ShapeError,
    UnknownFieldWarning,
    UnknownNameError,
)
from .geometry import ReceptiveField
from .io import load, save
from .layers import *  # noqa: F403
from .layers import __all__ as _layer_names
from .layers.layer import Context, Layer, ParamSpec
from .net import DagNN
from .preprocess import Preprocessor
from .simplenn import SimpleNN
from .variables import Param, Var

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CheckError",
    "Context",
    "DTypeError",
    "DagNN",
    "DagnnError",
    "FileFormatError",
    "GraphError",
    "LabelError",
    "Layer",
    "OptionError",
    "Param",
    "ParamSpec",
    "PlaceholderError",
    "Preprocessor",
    "ReceptiveField",
    "ReleasedError",
    "ShapeError",
    "SimpleNN",
    "UnknownFieldWarning",
    "UnknownNameError",
    "Var",
    "check_layer",
    "load",
    "num_threads",
    "save",
    "set_num_threads",
    *_layer_names,
]
