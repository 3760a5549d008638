"""One pass over samples: batch after batch through the network, with steps of the solver or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..capture import borrowing
from ..errors import DagnnError, LabelError, OptionError, TrainingError
from ..layers import Sum
from .finite import explain
from .loader import Loader, Part, parts
from .stats import SKIPPED
from .update import Updates

if TYPE_CHECKING:
    from ..backends.base import Array
    from ..data import Batch, Data
    from ..net import DagNN
    from .trainer import Trainer

OVERFLOWS: dict[str, Any] = {"over": "ignore", "invalid": "ignore"}  # of which a dynamic scale takes care


class Pass:
    """Validation: evaluates samples in mode "test" and collects statistics."""

    name = "validation"
    mode = "test"
    stream = 1  # of random numbers, by the side of epoch and batch
    _may_borrow = True  # nothing of one evaluation is needed after the next one
    _updates: Updates | None = None

    def __init__(self, trainer: Trainer, data: Data, samples: np.ndarray, epoch: int) -> None:
        self.trainer, self.net, self.epoch, self.samples = trainer, trainer.net, epoch, samples
        key = (trainer.random_seed, self.stream, epoch)
        pieces = parts(samples, trainer.batch_size, trainer.num_sub_batches, key)
        self.loader = Loader(
            data,
            pieces,
            random=self.mode == "train",
            prefetch=trainer.prefetch,
            backend=self.net.backend,
        )
        self.done = 0
        self.seconds = 0.0
        self._sums: dict[str, Any] = dict.fromkeys(trainer.der_outputs, 0.0)
        self._sum_up = {name: _sums_samples(self.net, name) for name in trainer.der_outputs}

    def run(self, bar: Any) -> dict[str, float]:
        """Go through all batches; returns the statistics. `bar` is told the number of samples done."""
        begun = perf_counter()
        self.net.mode = self.mode
        self.net.reset()
        evaluation = self.net.evaluation
        try:
            borrowed = borrowing(self.net, self._may_borrow, self._updates)
            with closing(iter(self.loader)) as batches, borrowed, self._settled():
                for part, inputs in batches:
                    with self.net.backend.evaluation():  # whose device the sums of losses are on, too
                        self._process(part, inputs)
                    self.done += len(part.indices)
                    bar.done(len(part.indices))
        except DagnnError as error:
            error.prefix(f"Epoch {self.epoch}, {self.name}" if self.epoch else "Evaluation")
            raise
        finally:
            self.net.evaluation = evaluation  # so that dropout in training doesn't depend on who validates
        self.seconds = perf_counter() - begun
        return self.stats()

    def stats(self) -> dict[str, float]:
        """The statistics so far: those of the trainer's `extract_stats`, or the averages of the losses."""
        if self.trainer.extract_stats:
            return _numbers(self.trainer.extract_stats(self.net))
        found = {name: float(total) / max(self.done, 1) for name, total in self._sums.items()}
        for node in self.net.layers.values():
            if "average" in self.net.state[node.name]:
                found[node.outputs[0]] = float(self.net.state[node.name]["average"])
        return found

    @property
    def waited(self) -> float:
        """The share of the time in which the next batch wasn't ready."""
        return self.loader.waited / self.seconds if self.seconds else 0.0

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """What all batches are processed inside of."""
        yield

    def _process(self, part: Part, inputs: Batch) -> None:
        self._evaluate(part, inputs, None)

    def _evaluate(self, part: Part, inputs: Batch, ders: Mapping[str, float] | None) -> dict[str, Array]:
        with _located(part, inputs):
            self.net.eval(inputs, ders, keep=self._sums, memory_budget=self.trainer.memory_budget)
        out: dict[str, Any] = {name: self.net.vars[name].value for name in self._sums}
        for name, value in out.items():
            count = 1 if self._sum_up[name] else len(part.indices)
            self._sums[name] = self._sums[name] + value.astype("float64") * count
        return out


@dataclass
class Step:
    """A step that was launched with its evaluation, and what it takes to undo it, or to do it again."""

    part: Part
    inputs: Batch
    seeds: Mapping[str, float]
    evaluation: int
    learning_rate: float
    scale: float
    state: dict[str, Any]  # of the solver, before
    good: Callable[[], list[np.ndarray]]  # whether it moved anything


class TrainingPass(Pass):
    """Training: after every batch the solver makes a step along the derivatives of its sub-batches.

    Where the graph of the evaluation makes the step, the next batch is launched before anybody looks how this
    one went; unless derivatives have a dynamic scale, which the next batch would have to know. Nothing moves
    after what isn't finite, so that it can be done again, to say what is wrong.
    """

    name = "training"
    mode = "train"
    stream = 0

    def __init__(self, trainer: Trainer, data: Data, samples: np.ndarray, epoch: int) -> None:
        super().__init__(trainer, data, samples, epoch)
        self.solver, self.scaling = trainer.solver, trainer.scaling
        self._ders: dict[str, Array] = {}
        self._may_borrow = trainer.num_sub_batches == 1 and self.solver.keeps_nothing
        self._updates = trainer._updates_of(self.solver) if self._may_borrow else None
        self._launched: Step | None = None
        self._scaled = 1.0  # the scale of the derivatives that the last step left
        self.scaling.skipped = 0

    def run(self, bar: Any) -> dict[str, float]:
        """Go through all batches, with random numbers that only seed, epoch and batch decide."""
        self.net.evaluation = (self.epoch - 1) * len(self.loader.parts)
        return super().run(bar)

    def stats(self) -> dict[str, float]:
        """The statistics so far, with the number of steps that were skipped, if any were."""
        return super().stats() | ({SKIPPED: float(self.scaling.skipped)} if self.scaling.skipped else {})

    def _process(self, part: Part, inputs: Batch) -> None:
        if not self._ders:  # a new batch
            self.solver.learning_rate = self.trainer.rate_at(self.epoch - 1 + self.done / len(self.samples))
        net, solver, scaling = self.net, self.solver, self.scaling
        before, state = net.evaluation, dict(solver.state)
        if self._updates is not None:
            self._updates.scale, self._updates.made = scaling.scale, False
        size = round(len(part.indices) / part.share)
        seeds = {
            name: self.scaling.scale * (weight / size if self._sum_up[name] else weight * part.share)
            for name, weight in self.trainer.der_outputs.items()
        }
        with np.errstate(**OVERFLOWS if self.scaling.dynamic else {}):
            out = self._evaluate(part, inputs, seeds)
        self._settle()
        if self._updates is not None and self._updates.made:
            good = net.backend.fetch([self._updates.good])
            rate = solver.learning_rate
            self._launched = Step(part, inputs, seeds, before, rate, scaling.scale, state, good)
            if scaling.dynamic:
                self._settle()
            return
        self._scaled = 1.0
        self._collect(part)
        if not self._ders:
            raise OptionError(f"no parameter has a derivative of {', '.join(seeds)}: nothing can be trained")
        ders = self._ders if part.last else {}
        finite = bool(self.net.backend.finite([*out.values(), *ders.values()]))  # all that is waited for
        if not finite:
            self._stop_unless_scaled(part, inputs, seeds, out)
        if part.last:
            if finite:
                self._step()
            self.scaling.step(finite)
            self._ders = {}

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """What is wrong with the batch before the last one is said first."""
        try:
            yield
        except Exception:
            self._settle()
            raise
        self._settle()
        self._unscale(self._scaled)

    def _settle(self) -> None:
        """Look how the step went that was launched before, if one was."""
        step, self._launched = self._launched, None
        if step is None:
            return
        (good,) = step.good()
        with self.net.backend.evaluation():
            if not good:
                self._undo(step)
        self._scaled = step.scale if good else 1.0
        self.scaling.step(bool(good))

    def _undo(self, step: Step) -> None:
        """Let the solver forget a step that moved nothing; TrainingError unless its scale was too large."""
        assert self._updates is not None
        self.solver.state = step.state
        finite = self.net.backend.finite
        if not self.scaling.exhausted and finite([self.net.vars[name].value for name in self._sums]):
            self._updates.good.fill(True)
            return
        self.net.evaluation, self.solver.learning_rate = step.evaluation, step.learning_rate
        self.net._capture = False  # as a setting it would take memory from steps that may be under way
        with np.errstate(all="ignore"):
            out = self._evaluate(step.part, step.inputs, step.seeds)
        self._collect(step.part)
        self._stop_unless_scaled(step.part, step.inputs, step.seeds, out)

    def _step(self) -> None:
        """A step of the solver along the derivatives, without their scale, which moments don't have."""
        for name, der in self._ders.items():
            self.net.params[name].der = der
        self._unscale(self.scaling.scale)
        self.solver.step(self.net)

    def _unscale(self, scale: float) -> None:
        """Take its scale from the derivatives of parameters; moments have none."""
        params = self.net.params
        ders = {n: p.der for n, p in params.items() if p.der is not None and p.train_method == "gradient"}
        if scale == 1 or not ders:
            return
        wide = np.promote_types(next(iter(ders.values())).dtype, np.float32)
        for name, der in zip(ders, self.net.backend.cast(list(ders.values()), wide, 1 / scale), strict=True):
            params[name].der = der

    def _collect(self, part: Part) -> None:
        """Add the derivatives of a sub-batch; moments aren't derivatives: they are weighted by its size."""
        for name, param in self.net.params.items():
            if param.der is not None:
                der = param.der if param.train_method == "gradient" else param.der * part.share
                self._ders[name] = self._ders[name] + der if name in self._ders else der

    def _stop_unless_scaled(
        self, part: Part, inputs: Batch, seeds: Mapping[str, float], out: Mapping[str, Array]
    ) -> None:
        """TrainingError, unless all that is wrong may be a scale that is too large."""
        finite = self.net.backend.finite
        for name, value in out.items():
            if not finite([value]):
                self._stop(part, inputs, seeds, f"{name} is {float(value)}")
        if self.scaling.exhausted:
            name = next((name for name, der in self._ders.items() if not finite([der])), "?")
            scale = f" with loss_scale {self.scaling.scale:g}" if self.scaling.scale != 1 else ""
            self._stop(part, inputs, seeds, f"the derivative of parameter {name!r} is not finite{scale}")

    def _stop(self, part: Part, inputs: Batch, seeds: Mapping[str, float], what: str) -> None:
        with _located(part, inputs):  # a label that cannot be isn't looked for while graphs are replayed
            why = explain(self.net, inputs, seeds)
        raise TrainingError(
            f"batch {part.batch}: {what}; {why}. Parameters are as they were "
            f"before this batch. Received: learning_rate {self.solver.learning_rate:g}"
        )


@contextmanager
def _located(part: Part, inputs: Batch) -> Iterator[None]:
    """Errors inside of it say in which batch they are, and of which sample."""
    try:
        yield
    except DagnnError as error:
        where, n = f"batch {part.batch}", len(part.indices)
        sample = error.sample if isinstance(error, LabelError) else None
        if sample is not None and all(np.shape(array)[:1] == (n,) for array in inputs.values()):
            where += f", whose sample {sample} is number {part.indices[sample]} of the data"
        error.prefix(where)
        raise


def _sums_samples(net: DagNN, output: str) -> bool:
    """Whether the scalar `output`, or what a `Sum` adds up in it, is a sum over samples; else their mean."""
    nodes = [node for node in net.layers.values() if output in node.outputs]
    if not nodes:
        raise OptionError(f"der_outputs: {output!r} is an input of the network; there is nothing to minimise")
    if not isinstance(nodes[0].layer, Sum):
        return nodes[0].layer.sums_samples
    found = {name: _sums_samples(net, name) for name in nodes[0].inputs}
    if len(set(found.values())) > 1:
        raise OptionError(
            f"der_outputs: {output!r} adds sums over samples to means. Name its parts instead: "
            f"{', '.join(found)}"
        )
    return next(iter(found.values()))


def _numbers(stats: Any) -> dict[str, float]:
    """What `extract_stats` returned, checked."""
    try:
        return {str(name): float(value) for name, value in stats.items()}
    except (AttributeError, TypeError, ValueError):
        raise OptionError(f"extract_stats returns {{name: number}}. Received: {stats!r:.200}") from None
