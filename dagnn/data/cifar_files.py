"""The files of CIFAR-10 and CIFAR-100, in their binary format and that for Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DTypeError, FileFormatError, LabelError, OptionError, ShapeError
from ..io.atomic import replacing
from .cifar_pickle import PickledArray, read_pickle
from .labelled import check_labels

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32

Part = tuple[np.ndarray, np.ndarray]  # (n, 3, 32, 32) uint8, labels (n,)


@dataclass(frozen=True)
class Labels:
    """Which of the labels in the files are wanted, and how many classes there are of them.

    byte : where in a binary record, which has `num_bytes` of labels before its image.
    key : the labels in a file for Python.
    names, names_key : the binary format's file with the names of the classes; Python's key.
    """

    num_classes: int
    num_bytes: int
    byte: int
    key: str
    names: str
    names_key: str


CIFAR10 = Labels(10, 1, 0, "labels", "batches.meta.txt", "label_names")
COARSE = Labels(20, 2, 0, "coarse_labels", "coarse_label_names.txt", "coarse_label_names")
FINE = Labels(100, 2, 1, "fine_labels", "fine_label_names.txt", "fine_label_names")


@dataclass(frozen=True)
class Layout:
    """Where the files of a dataset are, and how to read them."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    read: Callable[[Path, Labels], Part]
    read_names: Callable[[Path, Labels], list[str]]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)


def layouts(labels: Labels) -> tuple[Layout, Layout]:
    """The binary layout of the dataset with these labels, and that for Python.

    >>> [layout.folder for layout in layouts(FINE)]
    ['cifar-100-binary', 'cifar-100-python']
    """
    numbers = range(1, 6)
    if labels is CIFAR10:
        binary = "cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in numbers), "test_batch.bin"
        python = (
            "cifar-10-batches-py",
            tuple(f"data_batch_{i}" for i in numbers),
            "test_batch",
            "batches.meta",
        )
    else:
        binary = "cifar-100-binary", ("train.bin",), "test.bin"
        python = "cifar-100-python", ("train",), "test", "meta"
    return (
        Layout(*binary, labels.names, read_binary, read_names),
        Layout(*python, read_python, read_python_names),
    )


def read_binary(path: Path, labels: Labels) -> Part:
    """The images of a binary file: records of one byte for each label and 3072 for red, green and blue.

    Raises FileFormatError if the file's length isn't a whole number of records, or a label has no class.
    """
    record = labels.num_bytes + PIXELS
    records = np.fromfile(path, np.uint8)
    if len(records) % record:
        raise FileFormatError(
            f"{path}: expected records of {record} bytes; {len(records)} bytes are "
            f"{len(records) // record} records and {len(records) % record} bytes"
        )
    records = records.reshape(-1, record)
    check_labels(records[:, labels.byte], labels.num_classes, path)
    return records[:, labels.num_bytes :].reshape(-1, *SHAPE), records[:, labels.byte]


def read_names(path: Path, labels: Labels) -> list[str]:
    """Names of the classes, one per line."""
    try:
        names = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: it is no text: {error}") from error
    return _check_names([name.strip() for name in names if name.strip()], labels, path)


def read_python(path: Path, labels: Labels) -> Part:
    """The images of a pickle for Python, whose `data` has a row for each; read without unpickling."""
    content = read_pickle(path)
    data, found = content.get("data"), content.get(labels.key)
    if not isinstance(data, PickledArray):
        raise FileFormatError(f"{path}: it has no array 'data'")
    try:
        rows = data.matrix()
    except ValueError as error:
        raise FileFormatError(f"{path}: 'data' is {error}") from error
    if not isinstance(found, list) or len(rows) != len(found) or rows.shape[1] != PIXELS:
        number = len(found) if isinstance(found, list) else "no"
        raise FileFormatError(
            f"{path}: expected rows of {PIXELS} in 'data' and as many {labels.key!r}. "
            f"Received: data {rows.shape}, {number} labels"
        )
    return rows.reshape(-1, *SHAPE), _whole_numbers(found, labels, path)


def read_python_names(path: Path, labels: Labels) -> list[str]:
    """Names of the classes in a pickle for Python."""
    return _check_names(read_pickle(path).get(labels.names_key), labels, path)


def write_cifar10(
    root: str | os.PathLike[str],
    images: Any,
    labels: Any,
    test_images: Any,
    test_labels: Any,
    class_names: Sequence[str],
) -> None:
    """Write images in the binary format of CIFAR-10, which `Cifar10(root)` reads.

    The images for training are divided evenly among data_batch_1.bin to data_batch_5.bin in the folder
    cifar-10-batches-bin; every file is written all or nothing.

    Parameters
    ----------
    root : the folder for that folder; made if it is missing.
    images, test_images : (n, 3, 32, 32) uint8.
    labels, test_labels : (n,) classes 0 to 9.
    class_names : ten of them.
    """
    names = [str(name) for name in class_names]
    if len(names) != CIFAR10.num_classes or any(not n.strip() or "\n" in n for n in names):
        raise OptionError(f"class_names are ten names of one line each. Received: {names!r:.200}")
    train, test = _records(images, labels), _records(test_images, test_labels)
    layout = layouts(CIFAR10)[0]
    folder = Path(root) / layout.folder
    folder.mkdir(parents=True, exist_ok=True)
    contents = [piece.tobytes() for piece in (*np.array_split(train, len(layout.train)), test)]
    for name, content in zip(layout.files, (*contents, "\n".join(names).encode() + b"\n"), strict=True):
        with replacing(folder / name) as file:
            file.write(content)


def _records(images: Any, labels: Any) -> np.ndarray:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or labels.dtype.kind not in "iu":
        raise DTypeError(f"images are uint8, labels integers. Received: {images.dtype}, {labels.dtype}")
    if images.shape[1:] != SHAPE or labels.shape != images.shape[:1]:
        raise ShapeError(f"images are (n, 3, 32, 32), labels (n,). Received: {images.shape}, {labels.shape}")
    wrong = np.flatnonzero((labels < 0) | (labels >= CIFAR10.num_classes))
    if len(wrong):
        raise LabelError(f"labels are 0 to 9. Received: {labels[wrong[0]]} of sample {wrong[0]}")
    return np.concatenate((labels[:, None].astype(np.uint8), images.reshape(-1, PIXELS)), axis=1)


def _whole_numbers(found: list[Any], labels: Labels, path: Path) -> np.ndarray:
    """Labels of a list, which may hold anything."""
    for sample, label in enumerate(found):
        if type(label) is not int:
            raise FileFormatError(
                f"{path}: {labels.key!r} of sample {sample} is no class but a {type(label).__name__}"
            )
    array = np.array(found, object)  # of any size until they are checked
    check_labels(array, labels.num_classes, path)
    return array.astype(np.int64)


def _check_names(names: Any, labels: Labels, path: Path) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FileFormatError(f"{path}: it has no list {labels.names_key!r}")
    if len(names) != labels.num_classes:
        raise FileFormatError(f"{path}: expected names of {labels.num_classes} classes, found {len(names)}")
    return names
