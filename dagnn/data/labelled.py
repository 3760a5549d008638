"""Images with one class each, in memory: what the well-known datasets are."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np

from ..errors import FileFormatError
from .preparation import fit_preparation, prepare_all
from .source import Batch, Data, sample_numbers, two_names


class LabelledImages(Data):
    """Training images, which are the set "train", and test images, the set "val".

    A batch has the images as float32, in units of 0 to 255 from which the mean image may be subtracted, and
    their classes as int64, 0-based.

    `images` (N, C, H, W) are the bytes as they come, `labels` (N,) the classes, `prepare` what is done to the
    images of a batch, to be done to others as well, and `data_mean` what it subtracts, or None.

    Parameters
    ----------
    train, test : pairs of images (n, C, H, W) uint8 and labels (n,).
    names : the variables that the images and labels are for.
    steps : of `fit_preparation`.
    """

    def __init__(
        self,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        names: Sequence[str],
        **steps: bool,
    ) -> None:
        self.names = two_names(names)
        self.images = np.concatenate((train[0], test[0]))
        self.labels = np.concatenate((train[1], test[1])).astype(np.int64)
        super().__init__(np.repeat((1, 2), (len(train[1]), len(test[1]))))
        self.prepare = fit_preparation(self.images, len(train[1]), **steps)
        self.data_mean = self.prepare.mean
        self._prepared: np.ndarray | None = None
        if self.prepare.spread is not None or self.prepare.whitening is not None:  # too slow for every batch
            self._prepared = prepare_all(self.prepare, self.images)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Any, rng: np.random.Generator | None = None) -> Batch:
        """The images and labels with these numbers; DataError if there are none."""
        samples = sample_numbers(indices, len(self))
        ready = self._prepared
        images = self.prepare(self.images[samples]) if ready is None else ready[samples]
        return dict(zip(self.names, (images, self.labels[samples]), strict=True))


def check_labels(labels: np.ndarray, num_classes: int, path: str | PathLike[str]) -> None:
    """FileFormatError that names the first sample of the file whose label is none of the classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise FileFormatError(
            f"{fspath(path)}: the labels of {num_classes} classes go from 0 to {num_classes - 1}, "
            f"and sample {wrong[0]} has {labels[wrong[0]]}"
        )
