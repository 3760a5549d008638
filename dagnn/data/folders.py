"""Image files as samples: lists of files, folders of classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, DTypeError, OptionError, ShapeError, shorten
from ..layers.options import real, whole
from .source import SETS, Batch, Data, sample_numbers, two_names

Reader = Callable[[list[str], "np.random.Generator | None"], "np.ndarray | list[np.ndarray]"]
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm")
TRAIN, VAL, TEST = 1, 2, 3  # sets
UNKNOWN = -1  # a label that losses ignore


class Images(Data):
    """Image files, with labels or without.

    Parameters
    ----------
    paths : the files; or a folder, whose images are taken, in the order of their names.
    reader : makes an array (N, C, H, W) of paths, usually an `ImageReader` with a `resize=(H, W)`.
    labels, sets : one for each file; without labels there are none in the batches.
    names : the variables that images and labels are for.
    val_reader : reads what is read without random changes; `reader` if None.

    >>> from dagnn.data import ImageReader
    >>> from dagnn.images import write_image
    >>> for name in ("a.png", "b.png"):
    ...     write_image(name, np.zeros((8, 8, 3), np.uint8))
    >>> data = Images(["a.png", "b.png"], ImageReader(resize=(4, 4)), labels=[7, 3])
    >>> batch = data.batch([1])
    >>> batch["input"].shape, batch["label"]
    ((1, 3, 4, 4), array([3]))
    >>> Images(".", ImageReader()).paths
    ['./a.png', './b.png']
    """

    def __init__(
        self,
        paths: str | PathLike[str] | Iterable[str | PathLike[str]],
        reader: Reader,
        labels: Any = None,
        sets: Any = None,
        *,
        names: Sequence[str] = ("input", "label"),
        val_reader: Reader | None = None,
    ) -> None:
        if isinstance(paths, str | PathLike):
            paths = files_in(paths, required=True)
        self.paths = [fspath(path) for path in paths]
        self.labels = None if labels is None else np.asarray(labels)
        if self.labels is not None and self.labels.shape[:1] != (len(self),):
            raise ShapeError(f"labels has one row per file, {len(self)}. Received: shape {self.labels.shape}")
        if self.labels is not None and self.labels.size and self.labels.dtype.kind not in "biuf":
            first = self.labels.ravel()[0]
            raise DTypeError(
                f"labels are numbers, classes from 0. Received: {self.labels.dtype}: {str(first)!r:.80}"
            )
        self.names = two_names(names)
        self.reader = reader
        self.val_reader = reader if val_reader is None else val_reader
        super().__init__(sets)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Any, rng: np.random.Generator | None = None) -> Batch:
        """The images in these files, and their labels; DataError for numbers there are no files for."""
        samples = sample_numbers(indices, len(self))
        reader = self.val_reader if rng is None else self.reader
        images = reader([self.paths[i] for i in samples], rng)
        if isinstance(images, list):
            images = _packed(images)
        batch = {self.names[0]: images}
        if self.labels is not None:
            batch[self.names[1]] = self.labels[samples]
        return batch


class ImageFolder(Images):
    """Images in folders that are named after their classes.

    Either `root/<class>/*.jpg`, or `root/train/<class>/*.jpg` and the same in `val` and `test`, each of which
    may be missing; the images of a `test` (or `val`) folder without class folders have the label -1. Images
    are files with the ending of a JPEG, PNG, BMP, TIFF, WebP, GIF or PPM; others, and hidden ones, are left
    out.

    Parameters
    ----------
    root, reader, names, val_reader : see `Images`.
    val : the fraction of each class that is held out where there is no folder `val`. Which files depends
        on `seed`, their number and the name of the class, on no other class.
    classes : the folders to use, in the order of the labels; all, in alphabetical order, if None.

    `classes`, `paths` and `labels` say what was found. Raises DataError for folders that are missing or
    empty, and for classes in `val` or `test` without training images.

    >>> import os
    >>> from dagnn.data import ImageReader
    >>> from dagnn.images import write_image
    >>> for kind, shade in [("dark", 10), ("light", 250)]:
    ...     os.makedirs(f"shades/{kind}")
    ...     for i in range(4):
    ...         write_image(f"shades/{kind}/{i}.png", np.full((8, 8, 3), shade, np.uint8))
    >>> data = ImageFolder("shades", ImageReader(resize=(4, 4)), val=0.25)
    >>> data.classes, len(data.train), len(data.val)
    (['dark', 'light'], 6, 2)
    >>> batch = data.batch(data.val)
    >>> batch["input"].shape, batch["label"]
    ((2, 3, 4, 4), array([0, 1]))
    """

    def __init__(
        self,
        root: str | PathLike[str],
        reader: Reader,
        *,
        names: Sequence[str] = ("input", "label"),
        val: float = 0.1,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        val_reader: Reader | None = None,
    ) -> None:
        val, seed = real("val", val, least=0, below=1), whole("seed", seed)
        folders = _sets_in(Path(root))
        found = folders_in(folders[TRAIN])
        self.classes = _classes(folders[TRAIN], found, classes)
        listing = Listing()
        for label, name in enumerate(self.classes):
            paths = files_in(folders[TRAIN] / name, required=True)
            held = 0.0 if VAL in folders else val
            listing.add(paths, label, hold_out(len(paths), held, seed, name))
        for number, folder in folders.items():
            if number != TRAIN:
                self._add_set(listing, folder, number, found)
        super().__init__(
            listing.paths, reader, listing.labels, listing.sets, names=names, val_reader=val_reader
        )

    def _add_set(self, listing: Listing, folder: Path, number: int, trained: list[str]) -> None:
        """What a val or test folder holds."""
        present = folders_in(folder)
        if strange := set(present) - set(trained):
            raise DataError(
                f"{folder}: no training images for {shorten(sorted(strange))}. "
                f"There are some for {shorten(trained)}"
            )
        if not present:
            listing.add(files_in(folder, required=True), UNKNOWN, number)
        for label, name in enumerate(self.classes):
            if name in present:
                listing.add(files_in(folder / name), label, number)
        if number not in listing.sets:
            raise DataError(
                f"{folder}: no images of the classes {shorten(self.classes)} in its folders "
                f"{shorten(present)}"
            )


class Listing:
    """Files being listed: their paths, labels and sets."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.labels: list[int] = []
        self.sets: list[int] = []

    def add(self, paths: Sequence[str], label: int, sets: int | np.ndarray) -> None:
        """Files of one class, and the set of all or of each."""
        self.paths += paths
        self.labels += [label] * len(paths)
        self.sets += np.broadcast_to(sets, len(paths)).tolist()


def hold_out(n: int, fraction: float, seed: int, name: str) -> np.ndarray:
    """The sets of the `n` files of a class: a fraction are in val, one at least and never all."""
    sets = np.full(n, TRAIN)
    if fraction:
        count = min(max(round(fraction * n), 1), n - 1)
        order = np.random.default_rng([seed, *os.fsencode(name)]).permutation(n)
        sets[order[:count]] = VAL
    return sets


def files_in(folder: str | PathLike[str], required: bool = False) -> list[str]:
    """Paths of the images in a folder, by name."""
    entries = [entry for entry in _entries(folder) if entry.is_file()]
    paths = sorted(entry.path for entry in entries if _is_image(entry.name))
    if required and not paths:
        others = shorten(sorted(entry.name for entry in entries), most=3)
        raise DataError(
            f"{fspath(folder)}: no images here, files that end in {', '.join(ENDINGS)}. "
            f"Received: {others or 'no files'}"
        )
    return paths


def folders_in(folder: str | PathLike[str]) -> list[str]:
    """Names of the folders in a folder."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _entries(folder: str | PathLike[str]) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, without links that lead nowhere or in circles."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            return [entry for entry in shown if not entry.is_symlink() or os.path.exists(entry.path)]
    except OSError as error:
        raise DataError(f"{fspath(folder)}: no folder that can be read ({error.strerror})") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _sets_in(root: Path) -> dict[int, Path]:
    """The folder of each set, by its number: `root` itself if it is not divided into sets."""
    if "train" not in folders_in(root) or not folders_in(root / "train"):
        return {TRAIN: root}
    return {number: root / name for number, name in enumerate(SETS, 1) if (root / name).is_dir()}


def _classes(folder: Path, found: list[str], wanted: Sequence[str] | None) -> list[str]:
    """The classes in the order of their labels."""
    if wanted is None:
        if not found:
            hint = "its images have no classes: use Images" if files_in(folder) else "it has no images either"
            raise DataError(f"{folder}: no folders here, one for each class; {hint}")
        return found
    classes = list(wanted)
    if missing := [name for name in classes if name not in found]:
        raise DataError(f"{folder}: no folders {shorten(missing)}. There are: {shorten(found)}")
    if len(set(classes)) != len(classes) or not classes:
        raise OptionError(f"classes are different names, one at least. Received: {shorten(classes)}")
    return classes


def _packed(images: list[np.ndarray]) -> np.ndarray:
    """Images of one size as one array."""
    shapes = sorted({image.shape for image in images})
    if len(shapes) != 1:
        raise ShapeError(
            f"images of a batch have one size: give the reader a size, resize=(H, W). "
            f"Received: (C, H, W) = {shorten(shapes, most=4) or 'no images'}"
        )
    return np.stack(images)
