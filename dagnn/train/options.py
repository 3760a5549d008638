"""What the options of a trainer may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Arrays, Data
from ..errors import OptionError, unknown_name
from ..nbytes import as_bytes
from ..net import DagNN
from ..precision import as_precision
from .scaling import check_loss_scale
from .solvers import Solver

if TYPE_CHECKING:
    from .trainer import Trainer

PLOTS = ("png", "svg", "pdf")


def check(trainer: Trainer) -> None:
    """OptionError naming the first option that cannot be."""
    _kind("net", trainer.net, DagNN, "a DagNN")
    _kind("solver", trainer.solver, Solver, "a solver, such as SGD()")
    least = {"batch_size": 1, "num_sub_batches": 1, "num_epochs": 0, "prefetch": 0, "random_seed": 0}
    least |= {name: 1 for name in ("epoch_size", "keep_last") if getattr(trainer, name) is not None}
    for name, low in least.items():
        value = getattr(trainer, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise OptionError(f"{name} is a whole number from {low}. Received: {value!r}")
    rates: Any = trainer.learning_rate
    if not (rates is None or callable(rates)):
        check_rates(list(rates) if isinstance(rates, Sequence) or np.ndim(rates) == 1 else [rates])
    if trainer.exp_dir is not None:
        _kind("exp_dir", trainer.exp_dir, (str, PathLike), "the path of a folder")
    for name in ("post_epoch", "extract_stats"):
        if getattr(trainer, name) is not None and not callable(getattr(trainer, name)):
            raise OptionError(f"{name} is a function. Received: {getattr(trainer, name)!r}")
    if isinstance(trainer.plots, str) or not set(trainer.plots or ()) <= set(PLOTS):
        raise OptionError(f"plots is a list of {', '.join(PLOTS)}. Received: {trainer.plots!r}")
    if trainer.keep_best is not None and "." not in str(trainer.keep_best):
        raise OptionError(
            f'keep_best is a statistic such as "val.objective". Received: {trainer.keep_best!r}'
        )
    if trainer.memory_budget is not None:
        as_bytes(trainer.memory_budget)
    as_precision(trainer.precision)
    check_loss_scale(trainer.loss_scale)
    _check_der_outputs(trainer)


def check_rates(rates: Sequence[Any]) -> None:
    """OptionError unless these are learning rates, at least one."""
    numbers = [isinstance(rate, int | float | np.number) and not isinstance(rate, bool) for rate in rates]
    if not rates or not all(numbers) or not all(isfinite(rate) and rate >= 0 for rate in rates):
        raise OptionError(
            f"learning_rate is a number from 0, a list of them, or a function. Received: {rates!r}"
        )


def as_data(data: Any) -> Data:
    """`data` if it can be trained on; of a mapping, its `Arrays`."""
    if isinstance(data, Mapping):
        return Arrays(data)
    if not callable(getattr(data, "batch", None)) or not hasattr(data, "__len__"):
        raise OptionError(
            f"data is a dagnn.data.Data or a dict {{variable: array}}. Received: {type(data).__name__}"
        )
    return data


def as_samples(name: str, chosen: Any, data: Data) -> np.ndarray:
    """Numbers of samples, checked; those the data calls `name` where none were chosen."""
    try:
        numbers = np.asarray(getattr(data, name, ()) if chosen is None else chosen)
    except ValueError:
        raise OptionError(f"{name} is a list of whole numbers. Received: {chosen!r:.80}") from None
    if numbers.dtype == bool and numbers.shape == (len(data),):
        numbers = np.flatnonzero(numbers)
    if numbers.size == 0:
        return np.zeros(0, np.int64)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise OptionError(f"{name} is a list of whole numbers. Received: {numbers.dtype} {numbers.shape}")
    low, high = numbers.min(), numbers.max()
    if low < 0 or high >= len(data):
        raise OptionError(f"{name}: samples are numbered 0 to {len(data) - 1}. Received: {low} to {high}")
    return numbers


def _kind(name: str, value: Any, kind: Any, what: str) -> None:
    if not isinstance(value, kind):
        raise OptionError(f"{name} is {what}. Received: {value!r:.80}")


def _check_der_outputs(trainer: Trainer) -> None:
    weights = trainer.der_outputs
    if not isinstance(weights, Mapping) or not weights:
        raise OptionError(f'der_outputs is a dict such as {{"objective": 1}}. Received: {weights!r}')
    for name, weight in weights.items():
        if name not in trainer.net.vars:
            raise unknown_name("variable", name, trainer.net.outputs)
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float | np.number)
            or not isfinite(weight)
        ):
            raise OptionError(f"der_outputs[{name!r}] is a weight, a number. Received: {weight!r}")
