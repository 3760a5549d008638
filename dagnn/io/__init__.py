"""Files: a network saved and loaded. The format is written down in docs/file-format.md."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from ..net import DagNN

Path = str | PathLike[str]


def save(
    net: DagNN,
    path: Path,
    layers: Mapping[str, Any] | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `net` to a file, all of it or nothing: an error or a crash leaves an older file as it was.

    The ending .mat makes a MatConvNet struct in a MATLAB file, any other an HDF5 file.

    Parameters
    ----------
    path : of the file, which is replaced if it exists.
    layers : names for classes and functions, `{"MyLoss": MyLoss, "my_forward": f}`. A custom class without
        one is stored under its own name; the functions of a `Custom` layer need one.
    extra : further values kept next to the net, such as the state of a solver: dicts, lists, numbers,
        text, arrays. `load_extra` returns them.

    Raises OptionError, naming the place, for a value a file cannot keep.

    >>> import dagnn, tempfile, pathlib
    >>> net = dagnn.DagNN()
    >>> net.add_layer("relu", dagnn.ReLU(leak=0.1), "x", "y")
    >>> net.meta["classes"] = ["cat", "dog"]
    >>> path = pathlib.Path(tempfile.mkdtemp(), "net.h5")
    >>> dagnn.save(net, path, extra={"epoch": 3})
    >>> dagnn.load(path).meta, dagnn.io.load_extra(path)
    ({'classes': ['cat', 'dog']}, {'epoch': 3})
    """
    if os.fspath(path).lower().endswith(".mat"):
        if extra:
            raise OptionError("extra is kept in HDF5 files only. Choose an ending such as .h5")
        from . import matwrite

        matwrite.save(net, path, layers)
        return
    from . import hdf5

    hdf5.save(net, path, layers, extra)


def load(path: Path, layers: Mapping[str, Any] | None = None) -> DagNN:
    """The network in the file, on the NumPy backend.

    `layers` says what the names of custom layers and functions mean, `{"MyLoss": MyLoss}`; nothing is ever
    imported or executed because a file says so. A layer whose type stays unknown becomes a `Placeholder`,
    which can be looked at, edited and saved again, but not evaluated.

    Raises FileFormatError, saying where, for a file that is damaged, truncated, too new or no network.
    """
    from . import mat

    if mat.is_mat(path):
        from . import matconvnet

        return matconvnet.load(path, layers)
    from . import hdf5

    return hdf5.load(path, layers)


def load_extra(path: Path) -> dict[str, Any]:
    """What `save(..., extra=...)` put next to the network; an empty dict if nothing."""
    from . import hdf5

    return hdf5.load_extra(path)


def kind(path: Path) -> str:
    """What a network file is: its format, and MatConvNet's wrapper."""
    from . import mat

    if not mat.is_mat(path):
        return "dagnn HDF5"
    from ..simplenn import SimpleNN
    from . import matconvnet

    wrapper = "SimpleNN" if isinstance(matconvnet.read(path), SimpleNN) else "DagNN"
    return f"MATLAB {mat.version(path)}, {wrapper}"
