"""What training shows and writes while it goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import MissingPackageError
from .curves import plot
from .stats import epoch_line, write_stats

if TYPE_CHECKING:
    from .passes import Pass
    from .trainer import Trainer

SPARE = 20  # the curves are drawn after every epoch, unless that took more than 1/20 of the time


class Report:
    """Lines on the terminal; statistics, curves and TensorBoard's events in `exp_dir`."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.folder = trainer.folder
        self.plots = tuple(trainer.plots) if self.folder else ()
        self._tensorboard: Any = None
        self._drawn, self._draw_after = 0, 0.0  # epochs on the picture; when to draw it again

    def epoch(self, training: Pass) -> None:
        """An epoch is finished, and its checkpoint, if any, written."""
        trainer = self.trainer
        if trainer.progress:
            speed = len(training.samples) / training.seconds
            line = epoch_line(trainer.epoch, trainer.num_epochs, trainer.history[-1], speed)
            waited = f", {training.waited:.0%} of the time waiting for data" if training.waited > 0.05 else ""
            print(line + waited, flush=True)
        if self.folder:
            write_stats(self.folder, trainer.history)
        if self.folder and trainer.tensorboard:
            self._write_events(self.folder)
        if perf_counter() > self._draw_after:
            self._draw()

    def close(self) -> None:
        """Draw the last curves, and close what is open."""
        self._draw()
        if self._tensorboard:
            self._tensorboard.close()

    def _draw(self) -> None:
        history = self.trainer.history
        if self.folder is None or self._drawn == len(history):
            return
        begun = perf_counter()
        try:
            for ending in self.plots:
                plot(history, self.folder / f"curves.{ending}")
        except (MissingPackageError, OSError) as error:  # a picture is not worth a training
            self.plots = ()
            if self.trainer.progress:
                print(f"No curves: {error}", flush=True)
        self._drawn = len(history)
        self._draw_after = perf_counter() + SPARE * (perf_counter() - begun)

    def _write_events(self, folder: Path) -> None:
        from .tensorboard import TensorBoard

        epoch, stats = self.trainer.epoch, self.trainer.history[-1]
        if self._tensorboard is None:
            self._tensorboard = TensorBoard(folder / "tensorboard", epoch)
        self._tensorboard.write(epoch, stats)


class Bar:
    """A bar for the samples of one pass, where there is a terminal; with the statistics so far."""

    def __init__(self, current: Pass, title: str, show: bool) -> None:
        self.current, self._next = current, 0.0
        self._bar: Any = None
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=len(current.samples), desc=title, unit=" samples", leave=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.close()

    def done(self, samples: int) -> None:
        """So many more samples are done."""
        if self._bar is None:
            return
        if perf_counter() > self._next:
            self._next = perf_counter() + 0.2
            stats = self.current.stats().items()
            self._bar.set_postfix_str(
                "  ".join(f"{name} {value:.4g}" for name, value in stats), refresh=False
            )
        self._bar.update(samples)
