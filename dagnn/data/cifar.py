"""CIFAR-10 and CIFAR-100: small images in colour."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import FileFormatError
from .cifar_files import CIFAR10, COARSE, FINE, Labels, Layout, Part, layouts
from .download import fetch, missing_files
from .labelled import LabelledImages


class Cifar10(LabelledImages):
    """CIFAR-10: images of 32x32 pixels in ten classes.

    Its 50,000 training images are the set "train", its 10,000 test images the set "val", so that a trainer
    validates on them, as MatConvNet's cnn_cifar does (whose set 3 they are). A batch has the images
    (n, 3, 32, 32), RGB, as float32, and the labels (n,) from 0 to 9. (A. Krizhevsky, "Learning multiple
    layers of features from tiny images", 2009.)

    Parameters
    ----------
    root : the folder with cifar-10-batches-bin, the binary version (data_batch_1.bin to data_batch_5.bin,
        test_batch.bin, batches.meta.txt), or with cifar-10-batches-py, that for Python; or one of these. The
        latter are pickles, but nothing in them is ever executed.
    names : the variables that the images and labels are for.
    download : fetch the binary version if neither is there; see `fetch`.
    subtract_mean, contrast_normalization, whiten_data : steps of preparing the images, in this order, see
        `fit_preparation`. All three make the images of MatConvNet's cnn_cifar. With the last two the
        prepared images are kept, 0.7 GB, and finding the whitening takes about a minute.

    `images` (N, 3, 32, 32) uint8 and `labels` (N,) are everything, as it comes, `classes` the names of the
    classes, `data_mean` the image subtracted, or None, and `prepare(images)` makes other images what those
    in a batch are.

    Raises DataError if files are missing, with what to do, and FileFormatError if they are damaged.

    >>> import tempfile
    >>> from dagnn.data import Cifar10, write_cifar10
    >>> root, images = tempfile.mkdtemp(), np.full((8, 3, 32, 32), 100, np.uint8)
    >>> write_cifar10(root, images, range(8), images[:2], [9, 0], [f"class {i}" for i in range(10)])
    >>> data = Cifar10(root)
    >>> data.val, data.batch([8])["input"].shape, data.batch([8])["label"], data.classes[9]
    (array([8, 9]), (1, 3, 32, 32), array([9]), 'class 9')
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        names: Sequence[str] = ("input", "label"),
        download: bool = False,
        *,
        subtract_mean: bool = True,
        contrast_normalization: bool = False,
        whiten_data: bool = False,
    ) -> None:
        self.classes, train, test = _read("cifar-10", CIFAR10, Path(root), download)
        super().__init__(
            train,
            test,
            names,
            subtract_mean=subtract_mean,
            contrast_normalization=contrast_normalization,
            whiten_data=whiten_data,
        )


class Cifar100(LabelledImages):
    """CIFAR-100: images as those of `Cifar10`, in 100 classes, or the 20 that these belong to.

    Parameters
    ----------
    root : the folder with cifar-100-binary, the binary version (train.bin, test.bin, fine_label_names.txt,
        coarse_label_names.txt), or with cifar-100-python, or one of these.
    fine : whether the labels are the 100 fine classes, or the 20 coarse ones.

    All else is as in `Cifar10`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        names: Sequence[str] = ("input", "label"),
        download: bool = False,
        *,
        fine: bool = True,
        subtract_mean: bool = True,
        contrast_normalization: bool = False,
        whiten_data: bool = False,
    ) -> None:
        self.classes, train, test = _read("cifar-100", FINE if fine else COARSE, Path(root), download)
        super().__init__(
            train,
            test,
            names,
            subtract_mean=subtract_mean,
            contrast_normalization=contrast_normalization,
            whiten_data=whiten_data,
        )


def _read(dataset: str, labels: Labels, root: Path, download: bool) -> tuple[list[str], Part, Part]:
    """Names of the classes, images for training and for testing."""
    layout, folder = _find(labels, root)
    if download and _missing(layout, folder):
        fetch(dataset, root)
        layout, folder = _find(labels, root)
    if missing := _missing(layout, folder):
        raise missing_files(dataset, root, [str(path.relative_to(root)) for path in missing])
    classes = layout.read_names(folder / layout.names, labels)
    pieces = [layout.read(folder / name, labels) for name in layout.train]
    images, numbers = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    if not len(images):
        raise FileFormatError(f"{folder}: there are no images for training")
    return classes, (images, numbers), layout.read(folder / layout.test, labels)


def _find(labels: Labels, root: Path) -> tuple[Layout, Path]:
    """The layout and folder of which the fewest files are missing."""
    places = [(layout, folder) for layout in layouts(labels) for folder in (root / layout.folder, root)]
    return min(places, key=lambda place: len(_missing(*place)))


def _missing(layout: Layout, folder: Path) -> list[Path]:
    return [folder / name for name in layout.files if not (folder / name).is_file()]
