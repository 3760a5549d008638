"""Statistics of training for TensorBoard."""

from __future__ import annotations

from os import PathLike, fspath
from time import time_ns

from ..errors import missing_package
from .stats import Stats

FLUSH_SECONDS = 5  # how far what TensorBoard shows may lag behind


class TensorBoard:
    """Writes statistics to an event file in `folder`, which `tensorboard --logdir folder` shows.

    The statistic `objective` of "train" is the scalar `objective/train`, so that TensorBoard shows it beside
    `objective/val`; steps are epochs. Needs tensorboardX.

    Parameters
    ----------
    folder : made if missing; it may have the events of earlier, interrupted runs of the same training.
    first_epoch : the epoch that is written first. What earlier runs wrote of it and of later ones no
        longer counts.

    >>> with TensorBoard("first/tensorboard") as board:
    ...     board.write(1, {"train": {"objective": 0.31}, "val": {"objective": 0.4}})
    """

    def __init__(self, folder: str | PathLike[str], first_epoch: int = 1) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise missing_package(
                "writing statistics for TensorBoard", "tensorboardX", "tensorboard"
            ) from None
        # Two runs in one second would get one file name, and TensorBoard reads files in the order of names.
        suffix = f".{time_ns()}"
        self._writer = SummaryWriter(
            fspath(folder), purge_step=first_epoch, flush_secs=FLUSH_SECONDS, filename_suffix=suffix
        )

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, epoch: int, stats: Stats) -> None:
        """Add the statistics of an epoch."""
        for part, values in stats.items():
            for name, value in values.items():
                self._writer.add_scalar(f"{name}/{part}", value, epoch)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()
