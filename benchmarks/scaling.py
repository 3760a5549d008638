"""How time grows with the batch, the image, the threads and the window: `python -m benchmarks.scaling`.

`batch`, `size` and `threads` are of a network, against PyTorch in its better layout (and ONNX Runtime for
inference). `window` is of what SciPy has too: one image of one channel filtered by windows of growing
size, against the fastest of its ways (`ndimage.correlate`, `signal.fftconvolve`, `signal.oaconvolve`), and
the maximum under such windows against `ndimage.maximum_filter`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import dagnn
from dagnn.backends.numpy import backend as kernels

from . import works
from .measure import Work, best, choose, cores, error, interleaved, write_json
from .nets import CASES, Case
from .works import LAYOUTS, PHASES

BATCHES = (1, 2, 4, 8, 16, 32)
SIZES = (64, 128, 256, 512)
WINDOWS = (3, 5, 9, 15, 31)
IMAGE = 512
SWEEPS = ("batch", "size", "threads", "window")
FIXED = ("alexnet", "vgg-f", "vgg-vd-16", "googlenet", "resnet-50", "lenet")  # one size of image

Row = dict[str, Any]


def of_network(case: Case, phase: str, threads: int, seconds: float) -> Iterator[Row]:
    """A row for each peer."""
    dagnn.set_num_threads(threads)
    steps = {"dagnn": works.ours(case, phase)}
    steps |= {layout: works.pytorch(case, phase, layout, threads) for layout in LAYOUTS}
    if phase == "infer":
        steps["onnxruntime"] = works.onnxruntime(case, threads)
    times = interleaved(steps, seconds)
    yield row("pytorch", times["dagnn"], times[best(times, LAYOUTS)])
    if phase == "infer":
        yield row("onnxruntime", times["dagnn"], times["onnxruntime"])


def row(peer: str, mine: Sequence[float], theirs: Sequence[float]) -> Row:
    """The medians, and their ratio.

    >>> row("pytorch", [2.0], [3.0])
    {'peer': 'pytorch', 'ours_ms': 2.0, 'peer_ms': 3.0, 'ratio': 1.5}
    """
    ours_ms, peer_ms = median(mine), median(theirs)
    return {"peer": peer, "ours_ms": ours_ms, "peer_ms": peer_ms, "ratio": peer_ms / ours_ms}


def network_sweep(sweep: str, net: str, phase: str, threads: int, seconds: float) -> Iterator[Row]:
    """The rows of one network, for growing `sweep`."""
    case = CASES[net]
    runs: dict[int, tuple[Case, int]] = {
        "batch": {n: (case.at(batch=n), threads) for n in BATCHES},
        "size": {n: (case.at(size=n), threads) for n in SIZES},
        "threads": {n: (case, n) for n in range(1, threads + 1)},
    }[sweep]
    for value, (at, number) in runs.items():
        for found in of_network(at, phase, number, seconds):
            yield {"sweep": sweep, "net": net, "phase": phase, "value": value, **found}


def filters(x: np.ndarray, w: np.ndarray) -> dict[str, Work]:
    """Ways to filter image `x` by window `w`, with zeros around it."""
    from scipy import ndimage, signal

    flipped, p = w[::-1, ::-1], w.shape[0] // 2
    return {
        "dagnn": lambda: kernels.conv(x[None, None], w[None, None], pad=p)[0, 0],
        "ndimage.correlate": lambda: ndimage.correlate(x, w, mode="constant"),
        "signal.fftconvolve": lambda: signal.fftconvolve(x, flipped, mode="same"),
        "signal.oaconvolve": lambda: signal.oaconvolve(x, flipped, mode="same"),
    }


def maxima(x: np.ndarray, w: np.ndarray) -> dict[str, Work]:
    """Ways to take the maximum under a window as large as `w`."""
    from scipy import ndimage

    size, p = len(w), len(w) // 2
    return {
        "dagnn": lambda: kernels.max_pool(x[None, None], size, stride=1, pad=p)[0][0, 0],
        "ndimage.maximum_filter": lambda: ndimage.maximum_filter(x, size, mode="constant", cval=-np.inf),
    }


OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, Work]]] = {
    "filter": filters,
    "maximum": maxima,
}


def window_sweep(seconds: float, windows: Sequence[int] = WINDOWS, image: int = IMAGE) -> Iterator[Row]:
    """One image, growing windows, against the fastest way of SciPy."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((image, image), dtype=np.float32)
    for operation, ways in OPERATIONS.items():
        for size in windows:
            ways_here = ways(x, rng.standard_normal((size, size), dtype=np.float32))
            answer = ways_here["dagnn"]()
            for name, way in ways_here.items():
                if (wrong := error(answer, way())) > 1e-5:
                    raise SystemExit(
                        f"{operation} {size}: dagnn and {name} differ by {wrong:.2g} of the norm"
                    )
            times = interleaved(ways_here, seconds, pause=0.002)
            fastest = best(times, [name for name in times if name != "dagnn"])
            found = row("scipy", times["dagnn"], times[fastest])
            yield {
                "sweep": "window",
                "net": operation,
                "phase": "infer",
                "value": size,
                **found,
                "way": fastest,
            }


def plot(rows: Sequence[Row], path: Path) -> None:
    """A panel for each sweep, network and phase: milliseconds over what grows, both on logarithmic axes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys((r["sweep"], r["net"], r["phase"]) for r in rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.4), squeeze=False)
    for panel, axis in zip(panels, axes[0], strict=True):
        here = [r for r in rows if (r["sweep"], r["net"], r["phase"]) == panel]
        for peer in dict.fromkeys(r["peer"] for r in here):
            of = [r for r in here if r["peer"] == peer]
            axis.plot([r["value"] for r in of], [r["peer_ms"] for r in of], "o-", label=peer)
        one = {r["value"]: r["ours_ms"] for r in here}
        axis.plot(list(one), list(one.values()), "o-", color="black", label="dagnn")
        axis.set(xscale="log", yscale="log", xlabel=panel[0], ylabel="ms", title=" ".join(panel[1:]))
        axis.set_xticks(list(one), [str(value) for value in one])
        axis.minorticks_off()
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", default=",".join(SWEEPS), help="with commas (default: all)")
    parser.add_argument("--nets", default="vgg-f,dncnn", help="names, with commas (default: %(default)s)")
    parser.add_argument("--phase", choices=PHASES, help="default: both")
    parser.add_argument("--threads", type=int, default=cores(), help="default: one for each core")
    parser.add_argument("--seconds", type=float, default=5, help="of measuring, for each figure")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    options = parser.parse_args()
    sweeps = choose(options.sweeps, SWEEPS, parser.error)
    names = choose(options.nets, CASES, parser.error)

    rows: list[Row] = []
    print(f"{'sweep':8}{'net':12}{'phase':7}{'':>6}  {'peer':12}{'ours ms':>10}{'peer ms':>10}{'ratio':>7}")
    for found in _all(sweeps, names, [options.phase] if options.phase else PHASES, options):
        rows.append(found)
        print(
            f"{found['sweep']:8}{found['net']:12}{found['phase']:7}{found['value']:6}  {found['peer']:12}"
            f"{found['ours_ms']:10.2f}{found['peer_ms']:10.2f}{found['ratio']:7.2f}  {found.get('way', '')}",
            flush=True,
        )
        write_json(options.json, options.threads, rows)
    if options.plot:
        plot(rows, options.plot)


def _all(
    sweeps: Sequence[str], names: Sequence[str], phases: Sequence[str], options: argparse.Namespace
) -> Iterator[Row]:
    for sweep in sweeps:
        if sweep == "window":
            dagnn.set_num_threads(options.threads)
            yield from window_sweep(options.seconds / 5)
            continue
        for name in names:
            if sweep == "size" and name in FIXED:
                continue
            for phase in phases:
                yield from network_sweep(sweep, name, phase, options.threads, options.seconds)


if __name__ == "__main__":
    main()
