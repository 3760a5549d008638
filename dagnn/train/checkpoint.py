"""Checkpoints: the files of a training that can be resumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import io
from ..errors import FileFormatError, GraphError
from ..plan import shape_and_type
from ..variables import Node
from .stats import History, value_of

if TYPE_CHECKING:
    from ..net import DagNN

NAME = re.compile(r"net-epoch-([1-9]\d*)\.h5")


@dataclass
class Progress:
    """What a checkpoint says beside the network."""

    epoch: int
    history: History
    solver: dict[str, Any]
    learning_rate: Any  # that `post_epoch` chose; None: it didn't
    freeze: list[str]
    stopped: bool
    scaling: dict[str, Any] = field(default_factory=dict)  # of derivatives, where that changes


def path_of(folder: Path, epoch: int) -> Path:
    """`folder/net-epoch-N.h5`."""
    return folder / f"net-epoch-{epoch}.h5"


def epochs_in(folder: Path) -> list[int]:
    """The epochs there are checkpoints of, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(found[1]) for path in folder.iterdir() if (found := NAME.fullmatch(path.name)))


def clean(folder: Path) -> None:
    """Remove what writing left that was interrupted."""
    for name in ("net-epoch-*.h5", "stats.json", "stats.csv", "curves.*"):
        for path in folder.glob(f".{name}.*.part"):
            path.unlink(missing_ok=True)


def save(folder: Path, net: DagNN, progress: Progress, layers: Mapping[str, Any] | None) -> None:
    """Write the checkpoint of an epoch; a file that is there under its name is whole."""
    path = path_of(folder, progress.epoch)
    io.save(net, path, layers, extra={"training": vars(progress)})


def resume(path: Path, net: DagNN, layers: Mapping[str, Any] | None) -> Progress:
    """Give `net` the parameters and random state of a checkpoint; returns the rest of what it says.

    Raises
    ------
    GraphError : it is the checkpoint of another network; `net` is left alone.
    FileFormatError : it is no checkpoint, or damaged.
    """
    extra = io.load_extra(path).get("training")
    if isinstance(extra, dict):
        extra = {"scaling": {}} | extra  # older checkpoints have none
    if not isinstance(extra, dict) or set(extra) != set(Progress.__dataclass_fields__):
        raise FileFormatError(f"{path} is a network, but not a checkpoint of training")
    restore(path, net, layers)
    return Progress(**extra)


def restore(path: Path, net: DagNN, layers: Mapping[str, Any] | None = None) -> None:
    """Give `net` the parameters, with their settings, and the random state of the same network in a file.

    Raises GraphError where it is another network; `net` is left alone.
    """
    saved = io.load(path, layers)
    _check_same(path, saved, net)
    for name, param in net.params.items():
        param._copy_from(saved.params[name])
        if param.value is not None:
            param._own(net.backend.asarray(param.value))
    net.seed, net.evaluation = saved.seed, saved.evaluation


def prune(folder: Path, history: History, keep_last: int | None, keep_best: str | None) -> None:
    """Delete the checkpoints that are neither among the last nor the best."""
    if keep_last is None or not history:
        return
    keep = {len(history) - i for i in range(keep_last)}
    if keep_best:
        keep.add(best_epoch(history, keep_best))
    for epoch in epochs_in(folder):
        if epoch <= len(history) and epoch not in keep:
            path_of(folder, epoch).unlink()


def best_epoch(history: History, statistic: str) -> int:
    """The epoch, from 1, with the lowest `statistic`, such as "val.top1err"; "-val.accuracy": the highest.

    >>> best_epoch([{"val": {"err": 0.3}}, {"val": {"err": 0.1}}, {"val": {"err": 0.2}}], "val.err")
    2
    """
    sign = -1 if statistic.startswith("-") else 1
    name = statistic.removeprefix("-")
    value_of(history[-1], name)  # raises where the name is wrong
    part, _, key = name.partition(".")
    values = [sign * stats.get(part, {}).get(key, nan) for stats in history]
    ranked = [(value, epoch) for epoch, value in enumerate(values, 1) if not isnan(value)]
    return min(ranked)[1] if ranked else len(history)


def _check_same(path: Path, saved: DagNN, net: DagNN) -> None:
    for what in ("layers", "params"):
        theirs, ours = set(getattr(saved, what)), set(getattr(net, what))
        if theirs != ours:
            name = min(theirs ^ ours)
            where = "the checkpoint" if name in theirs else "the network"
            raise GraphError(
                f"{path} is a checkpoint of another network: only {where} has {name!r} among its {what}. "
                f"Choose another exp_dir"
            )
    for name, node in net.layers.items():
        _check_equal(path, f"layer {name!r}", _wiring(saved.layers[name]), _wiring(node))
    for name, param in net.params.items():
        there = saved.params[name].value
        if there is not None and param.value is not None:
            _check_equal(path, f"parameter {name!r}", shape_and_type(there), shape_and_type(param.value))


def _wiring(node: Node) -> str:
    return f"{type(node.layer).__name__} {', '.join(node.inputs)} -> {', '.join(node.outputs)}"


def _check_equal(path: Path, what: str, there: str, here: str) -> None:
    if there != here:
        raise GraphError(
            f"{path} is a checkpoint of another network: {what} is {there} there and {here} here. "
            f"Choose another exp_dir"
        )
