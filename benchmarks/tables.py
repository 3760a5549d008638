"""Figures of benchmarks' JSON files as Markdown: `python -m benchmarks.tables FILE.json ... [--into PAGE]`.

With --into they become a section of a page, in place of the figures that were there; those of a GPU have one
of their own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .measure import geometric_mean

Row = Mapping[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text, the others numbers.

    >>> print(table(["net", "ms"], [["lenet", "8.1"]]))
    | net | ms |
    | --- | ---: |
    | lenet | 8.1 |
    """
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def number(value: float | None) -> str:
    """Three digits.

    >>> number(1234.5), number(12.345), number(0.01234), number(None)
    ('1234', '12.3', '0.0123', '')
    """
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def networks(rows: Sequence[Row]) -> str:
    """Of `benchmarks.cpu`: a table for each phase, a line for each network."""
    return "\n\n".join(
        _phase(phase, [r for r in rows if r["phase"] == phase])
        for phase in dict.fromkeys(row["phase"] for row in rows)
    )


def _phase(phase: str, rows: Sequence[Row]) -> str:
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    by_net: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_net.setdefault(row["net"], {})[row["peer"]] = row
    memory = any(row["ours_peak_mb"] is not None for row in rows)
    heads = [{"infer": "inference", "train": "training step"}[phase], "batch", "dagnn, ms"]
    heads += [text for peer in peers for text in (f"{NAMES[peer]}, ms", "ratio")]
    heads += ["dagnn, MB", *(f"{NAMES[peer]}, MB" for peer in peers)] if memory else []
    lines = []
    for net, of in by_net.items():
        first = next(iter(of.values()))
        cells = [net, str(first["batch"]), _with_spread(first["ours_ms"], first["ours_spread_ms"])]
        for peer in peers:
            row = of.get(peer)
            cells += (
                ["", ""]
                if row is None
                else [_with_spread(row["peer_ms"], row["peer_spread_ms"]), _ratio(row)]
            )
        if memory:
            peaks = [
                first["ours_peak_mb"],
                *(of[peer]["peer_peak_mb"] if peer in of else None for peer in peers),
            ]
            cells += map(number, peaks)
        lines.append(cells)
    means = ["geometric mean", "", ""]
    for peer in peers:
        means += ["", f"{geometric_mean(row['ratio'] for row in rows if row['peer'] == peer):.2f}"]
    lines.append(means + [""] * (len(heads) - len(means)))
    return table(heads, lines)


NAMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "scipy": "SciPy"}


def _with_spread(ms: float, spread: float) -> str:
    return f"{number(ms)} ± {number(spread)}"


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f}"


def kernels(rows: Sequence[Row]) -> str:
    """Of `benchmarks.convolutions`: a line for each kernel."""
    heads = ["convolution", "kind", "algorithm", "dagnn, ms", "PyTorch, ms", "ratio", "GFLOP/s", "PyTorch's"]
    keys = ("ours_ms", "peer_ms", "ratio", "ours_gflops", "peer_gflops")
    lines = [
        [r["convolution"].replace("*", "\\*"), r["kind"], r["algorithm"], *(number(r[k]) for k in keys)]
        for r in rows
    ]
    return table(heads, lines, left=3)


def sweeps(rows: Sequence[Row]) -> str:
    """Of `benchmarks.scaling`."""
    heads = ["sweep", "network or operation", "phase", "peer", "value", "dagnn, ms", "peer, ms", "ratio"]
    lines = [
        [
            *(r["sweep"], r["net"], r["phase"], r.get("way") or NAMES[r["peer"]], str(r["value"])),
            *(number(r[k]) for k in ("ours_ms", "peer_ms", "ratio")),
        ]
        for r in rows
    ]
    return table(heads, lines, left=4)


def faults(rows: Sequence[Row]) -> str:
    """Of `benchmarks.faults`."""
    heads = ["network", "phase", "first evaluation", "third to tenth, median", "share"]
    lines = [[r["net"], r["phase"], str(r["first"]), number(r["steady"]), f"{r['share']:.2%}"] for r in rows]
    return table(heads, lines, left=2)


def devices(rows: Sequence[Row]) -> str:
    """Of `benchmarks.gpu`: a line for each network, setting and peer."""
    heads = ["network", "phase", "precision", "peer", "batch", "dagnn, ms", "peer, ms", "ratio"]
    heads += ["dagnn, images/s", "dagnn, MB", "peer, MB"]
    lines = [
        [
            *(r["net"], r["phase"], r["precision"] + (", CUDA graphs" if r["capture"] else "")),
            *(NAMES.get(r["peer"], r["peer"]), str(r["batch"])),
            *(_with_spread(r[f"{who}_ms"], r[f"{who}_spread_ms"]) for who in ("ours", "peer")),
            *(_ratio(r), number(r["ours_images_s"])),
            *(number(r[f"{who}_peak_mb"]) for who in ("ours", "peer")),
        ]
        for r in rows
    ]
    return table(heads, lines, left=4)


def orders(rows: Sequence[Row]) -> str:
    """Of `benchmarks.gpu --layouts`."""
    heads = ["convolution", "precision", "kind", "channels first, ms", "channels last, ms"]
    lines = [
        [
            r["convolution"].replace("*", "\\*"),
            r["precision"],
            r["kind"],
            *(number(r[f"{k}_ms"]) for k in r["layouts"]),
        ]
        for r in rows
    ]
    return table(heads, lines, left=3)


KINDS: dict[str, Callable[[Sequence[Row]], str]] = {
    "capture": devices,
    "layouts": orders,
    "rounds": networks,
    "convolution": kernels,
    "sweep": sweeps,
    "counts": faults,
}


TITLES = {
    "capture": "Networks on a GPU",
    "layouts": "Orders of memory on a GPU",
    "rounds": "Whole networks",
    "convolution": "Convolutions one by one",
    "sweep": "Growing batches, images, threads and windows",
    "counts": "Page faults",
}


def machine(facts: Mapping[str, Any]) -> str:
    """The machine in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    if "device" in facts:
        packages = ", ".join(f"{name} {version}" for name, version in facts["device_packages"].items())
        return (
            f"Measured on {facts['date']} on {facts['device']} with {facts['device_memory_gb']} GB, CUDA "
            f"{facts['runtime_cuda']} and a driver for {facts['driver_cuda']}; "
            f"Python {facts['python']}, {packages}."
        )
    return (
        f"Measured on {facts['date']} with {facts['threads']} threads on {facts['cores']} cores of a machine "
        f"with {facts['memory_gb']} GB ({facts['processor']}), {facts['system']}; "
        f"Python {facts['python']}, {versions}; NumPy's BLAS is {facts['blas']}."
    )


def markdown(figures: Mapping[str, Any]) -> str:
    """The table, or tables, of a file's figures, after a sentence about the machine."""
    rows = figures["rows"]
    kind = next((kind for kind in KINDS if rows and kind in rows[0]), None)
    if kind is None:
        raise SystemExit("no figures of a benchmark")
    return f"### {TITLES[kind]}\n\n{machine(figures['machine'])}\n\n{KINDS[kind](rows)}"


SECTIONS = {False: "Figures", True: "Figures on a GPU"}


def placed(page: str, figures: str, title: str = SECTIONS[False]) -> str:
    """`page` with `figures` as the section of this title, its last one if it had none.

    >>> placed("# Speed\\n\\n## Figures\\n\\nold\\n\\n## More\\n", "new")
    '# Speed\\n\\n## Figures\\n\\nnew\\n\\n## More\\n'
    """
    before, _, after = page.rstrip("\n").partition(f"\n## {title}\n")
    _, more, rest = after.partition("\n## ")
    return f"{before.rstrip()}\n\n## {title}\n\n{figures.rstrip()}\n" + (f"{more}{rest}\n" if more else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what --json wrote")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="a Markdown file, docs/performance.md")
    options = parser.parse_args()
    tables: dict[bool, list[str]] = {}
    for file in options.files:
        figures = json.loads(file.read_text())
        tables.setdefault("device" in figures["machine"], []).append(markdown(figures))
    for on_gpu, found in tables.items():
        text = "\n\n".join(found)
        if options.into:
            options.into.write_text(placed(options.into.read_text(), text, SECTIONS[on_gpu]))
        else:
            print(text)


if __name__ == "__main__":
    main()
