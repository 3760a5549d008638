"""The convolutions of the zoo's networks one by one against PyTorch: `python -m benchmarks.convolutions`.

Each different shape once: forward with bias, the derivative of the data (dzdx) and of the filters (dzdw).
Data is in channels-last memory for dagnn, as it is between its layers; PyTorch runs in both layouts, of which
the better one counts. GFLOP/s count the multiplications and additions of the definition, which Winograd's
algorithm makes do with fewer of.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import dagnn
from dagnn.backends.numpy import backend as kernels
from dagnn.backends.numpy import convolution

from .measure import Work, best, choose, cores, error, geometric_mean, interleaved, spread, write_json
from .nets import CASES, STANDARD, Convolution, convolutions
from .works import LAYOUTS

KINDS = ("forward", "dzdx", "dzdw")
TOLERANCE = 1e-4  # of float32, after sums of up to 100,000 products


def arrays(conv: Convolution) -> dict[str, np.ndarray]:
    """x and dzdy in channels-last memory, w and b; of a size at which sums stay near 1."""
    rng = np.random.default_rng(0)

    def maps(shape: tuple[int, ...]) -> np.ndarray:
        n, c, h, w = shape
        return rng.standard_normal((n, h, w, c), dtype=np.float32).transpose(0, 3, 1, 2)

    w = rng.standard_normal(conv.w, dtype=np.float32) / np.float32(np.sqrt(np.prod(conv.w[1:])))
    b = rng.standard_normal(conv.w[0], dtype=np.float32)
    return {"x": maps(conv.x), "dzdy": maps(conv.output), "w": w, "b": b}


def ours(conv: Convolution, kind: str, data: Mapping[str, np.ndarray]) -> Work:
    """dagnn's kernel on `data`."""
    x, dzdy, w, b = (data[name] for name in ("x", "dzdy", "w", "b"))
    return {
        "forward": lambda: kernels.conv(x, w, b, **conv.options),
        "dzdx": lambda: kernels.conv_dzdx(dzdy, w, x.shape, **conv.options),
        "dzdw": lambda: kernels.conv_dzdw(dzdy, x, w.shape, **conv.options),
    }[kind]


def pytorch(conv: Convolution, kind: str, data: Mapping[str, np.ndarray], layout: str) -> Work:
    """PyTorch's kernel on copies of `data` in memory `layout`."""
    import torch

    memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    x, dzdy, w = (
        torch.from_numpy(np.ascontiguousarray(data[name])).contiguous(memory_format=memory)
        for name in ("x", "dzdy", "w")
    )
    b, groups = torch.from_numpy(data["b"]), conv.x[1] // conv.w[1]
    pad, window = list(conv.pad[::2]), (list(conv.stride), list(conv.dilate))
    if kind == "forward":
        return lambda: torch.conv2d(x, w, b, window[0], pad, window[1], groups)
    if layout == "linear":
        return _linear(kind, *(a.flatten(1) for a in (x, dzdy, w)), b)
    mask = [kind == "dzdx", kind == "dzdw", False]
    options = (None, window[0], pad, window[1], False, [0, 0], groups, mask)
    derivatives = torch.ops.aten.convolution_backward
    return lambda: derivatives(dzdy, x, w, *options)[mask.index(True)]


def _linear(kind: str, x: Any, dzdy: Any, w: Any, b: Any) -> Work:
    """The products of a fully connected layer, which PyTorch makes faster of matrices than of maps."""
    import torch

    return {
        "forward": lambda: torch.nn.functional.linear(x, w, b),
        "dzdx": lambda: dzdy @ w,
        "dzdw": lambda: dzdy.T @ x,
    }[kind]


def measure(conv: Convolution, kind: str, seconds: float) -> dict[str, Any]:
    """The row of one kernel."""
    data = arrays(conv)
    works = {"dagnn": ours(conv, kind, data)}
    layouts = (*LAYOUTS, "linear") if conv.fully_connected else LAYOUTS
    works |= {layout: pytorch(conv, kind, data, layout) for layout in layouts}
    if (wrong := error(works["dagnn"](), works["nchw"]().numpy())) > TOLERANCE:
        raise SystemExit(f"{conv}, {kind}: differs from PyTorch's by {wrong:.2g} of its norm")
    times = interleaved(works, seconds, pause=0.002)  # PyTorch's threads don't spin for longer
    layout = best(times, layouts)
    mine, theirs = median(times["dagnn"]), median(times[layout])
    return {
        "convolution": str(conv),
        "kind": kind,
        "algorithm": algorithm(conv, kind),
        "ours_ms": mine,
        "peer_ms": theirs,
        "ratio": theirs / mine,
        "ours_gflops": 1e-6 * conv.operations / mine,
        "peer_gflops": 1e-6 * conv.operations / theirs,
        "ours_spread_ms": spread(times["dagnn"]),
        "peer_spread_ms": spread(times[layout]),
        "peer_layout": layout,
    }


def algorithm(conv: Convolution, kind: str) -> str:
    """What dagnn's backend chooses."""
    return convolution.algorithms(conv.x, conv.w, conv.stride, conv.pad, conv.dilate)[kind]


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    times = f"{row['ours_ms']:9.2f}{row['peer_ms']:9.2f}{row['ratio']:7.2f}"
    rates = f"{row['ours_gflops']:9.0f}{row['peer_gflops']:7.0f}"
    return f"{row['convolution']:46} {row['kind']:8}{times}{rates}  {row['algorithm']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    standard = ",".join(STANDARD)
    parser.add_argument("--nets", default=standard, help="names, with commas (default: %(default)s)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of forward,dzdx,dzdw (default: all)")
    parser.add_argument("--threads", type=int, default=cores(), help="default: one for each core")
    parser.add_argument("--seconds", type=float, default=0.5, help="of measuring, for each kernel")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    names, kinds = choose(options.nets, CASES, parser.error), choose(options.kinds, KINDS, parser.error)
    dagnn.set_num_threads(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    print(f"{'convolution':46} {'kind':8}{'ours ms':>9}{'peer ms':>9}{'ratio':>7}  GFLOP/s ours, peer")
    for conv, layers in convolutions(names).items():
        for kind in kinds:
            if kind == "dzdx" and conv.first:
                continue
            row = measure(conv, kind, options.seconds) | {"layers": layers}
            rows.append(row)
            print(line(row), flush=True)
        write_json(options.json, options.threads, rows)
    for kind in kinds:
        ratios = [row["ratio"] for row in rows if row["kind"] == kind]
        print(f"{kind}: geometric mean {geometric_mean(ratios):.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
