"""Checkpoints: the files of a training that can be resumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import io
from ..errors import FileFormatError, GraphError, OptionError
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
    learning_rate: Any  # that a `post_epoch` hook chose; None: it didn't
    stopped: bool


def path_of(folder: Path, epoch: int) -> Path:
    """`folder/net-epoch-N.h5`."""
    return folder / f"net-epoch-{epoch}.h5"


def epochs_in(folder: Path) -> list[int]:
    """The epochs there are checkpoints of, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(found[1]) for path in folder.iterdir() if (found := NAME.fullmatch(path.name)))


def clean(folder: Path) -> None:
    """Remove what checkpoints that were interrupted have left."""
    for path in folder.glob(".net-epoch-*.h5.*.part"):
        path.unlink()


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
    if keep_last is None:
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
    for name, param in net.params.items():
        shapes = [None if p.value is None else p.value.shape for p in (saved.params[name], param)]
        if None not in shapes and shapes[0] != shapes[1]:
            raise GraphError(
                f"{path} is a checkpoint of another network: parameter {name!r} has shape {shapes[0]} there "
                f"and {shapes[1]} here. Choose another exp_dir"
            )


def refuse(folder: Path, epochs: list[int]) -> OptionError:
    """The error for starting afresh where a training has left its checkpoints."""
    return OptionError(
        f"{folder} has the checkpoints of a training, up to epoch {epochs[-1]}. "
        f"Resume it with continue_=True (--continue), or choose another exp_dir"
    )
