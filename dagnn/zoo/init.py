"""The values networks start from."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import OptionError
from ..net import DagNN


def init_params(net: DagNN, seed: Any = 0, dtype: Any = np.float32) -> None:
    """`net.init_params`, then what `net.meta["init"]` asks of single parameters.

    There the name of a parameter, if the net still has it, stands for the standard deviation of a Gaussian or
    one of

    - "zero";
    - "bilinear": filters that interpolate, of a `ConvTranspose` by half their size (Long et al. 2015);
    - "identity": the six numbers of the affine map that changes nothing.

    `seed` is a number or a NumPy generator, `dtype` the type of the values.

    >>> from dagnn import zoo
    >>> net = zoo.spatial_transformer()
    >>> zoo.init_params(net)
    >>> net.params["transform_biases"].value.tolist()
    [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    """
    rng = np.random.default_rng(seed)
    net.init_params(rng, dtype)
    for name, start in net.meta.get("init", {}).items():
        if name in net.params:
            value: Any = net.params[name].value
            net.params[name].value = _start(start, value.shape, rng).astype(dtype)


def _start(start: Any, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if start == "zero":
        return np.zeros(shape)
    if start == "bilinear":
        return np.broadcast_to(np.outer(tent(shape[2]), tent(shape[3])), shape)
    if start == "identity" and shape == (6,):
        return np.array([1, 0, 0, 1, 0, 0])
    if isinstance(start, int | float):
        return start * rng.standard_normal(shape)
    raise OptionError(f"No way to start a parameter of shape {shape}. Received: {start!r}")


def tent(size: int) -> np.ndarray:
    """Weights that interpolate linearly when upsampling by half of `size`, rounded up.

    >>> tent(4).tolist()
    [0.25, 0.75, 0.75, 0.25]
    """
    factor = (size + 1) // 2
    centre = factor - (1 if size % 2 else 0.5)
    return 1 - abs(np.arange(size) - centre) / factor
