"""MNIST and datasets in its files, such as Fashion-MNIST."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..errors import FileFormatError
from .download import fetch, missing_files
from .idx import read_idx
from .labelled import LabelledImages, check_labels

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Mnist(LabelledImages):
    """The handwritten digits of MNIST, or another dataset in files of the same names.

    Its 60,000 images `train-...` are the set "train", its 10,000 images `t10k-...` the set "val", so that a
    trainer validates on them, as MatConvNet's cnn_mnist does (whose set 3 they are). A batch has the images
    (n, 1, 28, 28) as float32, 0 to 255 less the mean image of the training set, and the labels (n,) from
    0 to 9. (Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", 1998.)

    Parameters
    ----------
    root : the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
        t10k-labels-idx1-ubyte; compressed if their names end with .gz. `train-images.idx3-ubyte` does too.
    names : the variables that the images and labels are for.
    download : fetch what is missing; see `fetch`.
    subtract_mean : whether to subtract the mean image, which is then `data_mean`.

    `images` and `labels` are everything, as it comes, `classes` the names of the classes, and
    `prepare(images)` makes other images what those in a batch are.

    Raises DataError if files are missing, with what to do, and FileFormatError if they are damaged.

    >>> import tempfile
    >>> from dagnn.data import Mnist, write_idx
    >>> root = tempfile.mkdtemp()
    >>> for part, n in ("train", 6), ("t10k", 2):
    ...     write_idx(f"{root}/{part}-images-idx3-ubyte.gz", np.full((n, 28, 28), 200, np.uint8))
    ...     write_idx(f"{root}/{part}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8))
    >>> data = Mnist(root)
    >>> len(data), data.val, data.batch([5, 7])["input"].shape, data.batch([5, 7])["label"]
    (8, array([6, 7]), (2, 1, 28, 28), array([5, 1]))
    """

    dataset: ClassVar[str] = "mnist"
    classes: ClassVar[list[str]] = list("0123456789")

    def __init__(
        self,
        root: str | os.PathLike[str],
        names: Sequence[str] = ("input", "label"),
        download: bool = False,
        subtract_mean: bool = True,
    ) -> None:
        if download and _missing(Path(root)):
            fetch(self.dataset, root)
        if missing := _missing(Path(root)):
            raise missing_files(self.dataset, root, missing)
        train, test = (_read(Path(root), *part, len(self.classes)) for part in (TRAIN, TEST))
        if train[0].shape[1:] != test[0].shape[1:]:
            raise FileFormatError(
                f"{root}: images for training are {train[0].shape[1:]}, for testing {test[0].shape[1:]}"
            )
        super().__init__(train, test, names, subtract_mean=subtract_mean)


class FashionMnist(Mnist):
    """Zalando's pictures of clothes, which replace the digits of `Mnist`; all else is the same.

    (H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms", 2017, arXiv:1708.07747.)

    >>> FashionMnist.classes[9]
    'Ankle boot'
    """

    dataset = "fashion-mnist"
    classes = [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ]


def _find(root: Path, name: str) -> Path | None:
    """The file, in any of its spellings."""
    spellings = (name, name.replace("-idx", ".idx"))
    paths = (root / f"{spelling}{end}" for spelling in spellings for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _missing(root: Path) -> list[str]:
    return [name for name in TRAIN + TEST if _find(root, name) is None]


def _read(root: Path, images_name: str, labels_name: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 1, H, W) and labels (n,) that belong together."""
    images_path, labels_path = _find(root, images_name), _find(root, labels_name)
    assert images_path and labels_path
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, ndim in (images_path, images, 3), (labels_path, labels, 1):
        if array.ndim != ndim or array.dtype != np.uint8 or not array.size:
            raise FileFormatError(
                f"{path}: expected {ndim} dimensions of uint8. Received: {array.shape} {array.dtype}"
            )
    if len(images) != len(labels):
        raise FileFormatError(f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels")
    check_labels(labels, num_classes, labels_path)
    return images[:, None], labels
