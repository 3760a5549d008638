"""One pass over samples: batch after batch through the network, with steps of the solver or without."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DagnnError, LabelError, OptionError, TrainingError
from ..layers import Sum
from .finite import explain, is_finite
from .loader import Loader, Part, parts

if TYPE_CHECKING:
    from ..backends.base import Array
    from ..data import Batch, Data
    from ..net import DagNN
    from .trainer import Trainer


class Pass:
    """Validation: evaluates samples in mode "test" and collects statistics."""

    name = "validation"
    mode = "test"
    stream = 1  # of random numbers, by the side of epoch and batch

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
        self._sums = dict.fromkeys(trainer.der_outputs, 0.0)
        self._sum_up = {name: _sums_samples(self.net, name) for name in trainer.der_outputs}

    def run(self, bar: Any) -> dict[str, float]:
        """Go through all batches; returns the statistics. `bar` is told the number of samples done."""
        begun = perf_counter()
        self.net.mode = self.mode
        self.net.reset()
        evaluation = self.net.evaluation
        try:
            with closing(iter(self.loader)) as batches:
                for part, inputs in batches:
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
        found = {name: total / max(self.done, 1) for name, total in self._sums.items()}
        for node in self.net.layers.values():
            if "average" in self.net.state[node.name]:
                found[node.outputs[0]] = float(self.net.state[node.name]["average"])
        return found

    @property
    def waited(self) -> float:
        """The share of the time in which the next batch wasn't ready."""
        return self.loader.waited / self.seconds if self.seconds else 0.0

    def _process(self, part: Part, inputs: Batch) -> None:
        self._evaluate(part, inputs, None)

    def _evaluate(self, part: Part, inputs: Batch, ders: Mapping[str, float] | None) -> dict[str, Array]:
        try:
            self.net.eval(inputs, ders, keep=self._sums, memory_budget=self.trainer.memory_budget)
        except DagnnError as error:
            where, n = f"batch {part.batch}", len(part.indices)
            sample = error.sample if isinstance(error, LabelError) else None
            if sample is not None and all(np.shape(array)[:1] == (n,) for array in inputs.values()):
                where += f", whose sample {sample} is number {part.indices[sample]} of the data"
            error.prefix(where)
            raise
        out: dict[str, Any] = {name: self.net.vars[name].value for name in self._sums}
        for name, value in out.items():
            self._sums[name] += float(value) * (1 if self._sum_up[name] else len(part.indices))
        return out


class TrainingPass(Pass):
    """Training: after every batch the solver makes a step along the derivatives of its sub-batches."""

    name = "training"
    mode = "train"
    stream = 0

    def __init__(self, trainer: Trainer, data: Data, samples: np.ndarray, epoch: int) -> None:
        super().__init__(trainer, data, samples, epoch)
        self.solver = trainer.solver
        self._ders: dict[str, Array] = {}

    def run(self, bar: Any) -> dict[str, float]:
        """Go through all batches, with random numbers that only seed, epoch and batch decide."""
        self.net.evaluation = (self.epoch - 1) * len(self.loader.parts)
        return super().run(bar)

    def _process(self, part: Part, inputs: Batch) -> None:
        if not self._ders:  # a new batch
            self.solver.learning_rate = self.trainer.rate_at(self.epoch - 1 + self.done / len(self.samples))
        size = round(len(part.indices) / part.share)
        seeds = {
            name: weight / size if self._sum_up[name] else weight * part.share
            for name, weight in self.trainer.der_outputs.items()
        }
        out = self._evaluate(part, inputs, seeds)
        for name in seeds:
            if not is_finite(out[name]):
                self._stop(part, inputs, seeds, f"{name} is {float(out[name])}")
        self._collect(part)
        if not self._ders:
            raise OptionError(f"no parameter has a derivative of {', '.join(seeds)}: nothing can be trained")
        if part.last:
            for name, der in self._ders.items():
                if not is_finite(der):
                    self._stop(part, inputs, seeds, f"the derivative of parameter {name!r} is not finite")
                self.net.params[name].der = der
            self.solver.step(self.net)
            self._ders = {}

    def _collect(self, part: Part) -> None:
        """Add the derivatives of a sub-batch; moments aren't derivatives: they are weighted by its size."""
        for name, param in self.net.params.items():
            if param.der is not None:
                der = param.der if param.train_method == "gradient" else param.der * part.share
                self._ders[name] = self._ders[name] + der if name in self._ders else der

    def _stop(self, part: Part, inputs: Batch, seeds: Mapping[str, float], what: str) -> None:
        raise TrainingError(
            f"batch {part.batch}: {what}; {explain(self.net, inputs, seeds)}. Parameters are as they were "
            f"before this batch. Received: learning_rate {self.solver.learning_rate:g}"
        )


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
