"""Which order of memory suits convolutions, per precision: `python -m benchmarks.gpu --layouts`.

Every different convolution of the networks, forward and both derivatives, with maps and filters that are
dense with channels first (nchw) and last (nhwc). The sums weigh each by how many layers have it; they say
what the table of orders in backends/cupy is to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from dagnn.backends.base import Array, Backend
from dagnn.dtypes import floating

from ..measure import Work
from ..nets import Convolution
from ..works import LAYOUTS
from .timing import Clock, turns

KINDS = ("forward", "dzdx", "dzdw")
HEADER = "convolution                                    precision kind       nchw ms   nhwc ms"


def arrays(conv: Convolution, precision: str, layout: str, backend: Backend) -> dict[str, Array]:
    """x, w and dzdy of a convolution on the device, in this order of memory."""
    rng = np.random.default_rng(0)
    dtype = floating("float32" if precision == "tf32" else precision)
    made = {}
    for name, shape in (("x", conv.x), ("w", conv.w), ("dzdy", conv.output)):
        array = rng.standard_normal(shape, dtype=np.float32).astype(dtype)
        # Brought to the device as it is seen: there arrays with channels last would get channels first.
        order, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if layout == "nhwc" else 2 * ((0, 1, 2, 3),)
        made[name] = backend.asarray(np.ascontiguousarray(array.transpose(order))).transpose(back)
    return made


def works(conv: Convolution, precision: str, layout: str, backend: Backend) -> dict[str, Work]:
    """The kernels to measure; no derivative of the network's input, which nobody wants."""
    of = arrays(conv, precision, layout, backend)
    options = conv.options
    found: dict[str, Work] = {
        "forward": lambda: backend.conv(of["x"], of["w"], **options),
        "dzdx": lambda: backend.conv_dzdx(of["dzdy"], of["w"], conv.x, **options),
        "dzdw": lambda: backend.conv_dzdw(of["dzdy"], of["x"], conv.w, **options),
    }
    if conv.first:
        del found["dzdx"]
    return found


def measure(
    convolutions: Mapping[Convolution, Sequence[str]],
    precision: str,
    backends: Mapping[str, Backend],
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """A row for each convolution and kernel; `backends` are those that compute in each order."""
    clock = Clock(backends["nchw"].xp)
    for conv, layers in convolutions.items():
        by_layout = {layout: works(conv, precision, layout, backends[layout]) for layout in LAYOUTS}
        for kind in by_layout["nchw"]:
            times = turns({layout: by_layout[layout][kind] for layout in LAYOUTS}, seconds, clock, least=3)
            yield {
                "layouts": LAYOUTS,
                "convolution": str(conv),
                "layers": list(layers),
                "precision": precision,
                "kind": kind,
                **{f"{layout}_ms": median(times[layout]) for layout in LAYOUTS},
            }


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    times = "".join(f"{row[f'{layout}_ms']:10.3f}" for layout in LAYOUTS)
    return f"{row['convolution']:46} {row['precision']:9} {row['kind']:8}{times}"


def sums(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each precision and kernel: the time of all layers in both orders, and the better one.

    >>> row = {"precision": "tf32", "kind": "dzdw", "layers": ["a", "b"], "nchw_ms": 2.0, "nhwc_ms": 1.0}
    >>> sums([row])
    ['tf32      dzdw     nchw    4.000 ms   nhwc    2.000 ms   better: nhwc', ...]
    """
    total: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        for kind in (row["kind"], "all"):
            of = total.setdefault((row["precision"], kind), dict.fromkeys(LAYOUTS, 0.0))
            for layout in LAYOUTS:
                of[layout] += len(row["layers"]) * row[f"{layout}_ms"]
    return [
        f"{precision:9} {kind:8} "
        + "   ".join(f"{layout} {of[layout]:8.3f} ms" for layout in LAYOUTS)
        + f"   better: {min(LAYOUTS, key=of.__getitem__)}"
        for (precision, kind), of in total.items()
    ]
