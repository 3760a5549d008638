"""The images of the ILSVRC challenge, as MatConvNet, Caffe and torchvision expect them on disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from ..errors import DataError, FileFormatError
from ..io import mat
from .folders import TEST, TRAIN, UNKNOWN, VAL, Images, Listing, Reader, files_in, folders_in

WNID = re.compile(r"n\d{8}")
PLACES = (".", "images", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # of the folders train, val and test
WORDS = ("synset_words.txt", "LOC_synset_mapping.txt")
SOLUTIONS = ("val.txt", "LOC_val_solution.csv")
SOLUTION = re.compile(r"(?P<image>[^\s,]+)[\s,]+((?P<wnid>n\d{8})|(?P<number>\d{1,6}))\b")  # and boxes
GROUND_TRUTH = "*_validation_ground_truth.txt"
META = ("meta.mat", "meta_clsloc.mat")
CLASSES = 1000  # in meta.mat further ones follow, which contain several of them


class ImageNet(Images):
    """ImageNet of the ILSVRC challenges 2012 to 2017: 1000 classes, named by their WordNet IDs.

        root/train/n01440764/*.JPEG         training images, and so on for each class
        root/val/n01440764/*.JPEG           validation images by class, or
        root/val/*.JPEG                     all in one folder, with one of the files below
        root/test/*.JPEG                    test images: label -1

    Any of the three may be missing. They may also be in `root/images`, where MatConvNet has them, or in
    `root/ILSVRC/Data/CLS-LOC`. The classes of validation images in one folder are in

    - `val.txt`: lines "ILSVRC2012_val_00000001.JPEG 65", where 65 counts the sorted IDs from 0 (Caffe's), or
    - `LOC_val_solution.csv`: lines "ILSVRC2012_val_00000001,n01751748 111 108 ..." (Kaggle's), or
    - `ILSVRC2012_validation_ground_truth.txt` with `meta.mat`: the challenge's devkit,

    in `root`, in or beside `val`, or in `root/*devkit*/data`. Labels count the sorted IDs from 0.

    Parameters
    ----------
    root, reader, names, val_reader : see `Images`.

    `classes` are the IDs, in the order of the labels, and `descriptions` says in words what they are, where
    `synset_words.txt` or `LOC_synset_mapping.txt` (lines "n01440764 tench, Tinca tinca") or `meta.mat` is
    there; else it repeats the IDs. If there are training images, only their classes count: other validation
    images are left out. The blacklist, which MatConvNet leaves out of the validation, is not.

    Raises DataError if nothing is found or the classes of validation images are not, and FileFormatError for
    files that are not as described.

    >>> import os
    >>> import numpy as np
    >>> from dagnn.data import ImageReader
    >>> from dagnn.images import write_image
    >>> for folder in ("train/n01440764", "train/n01443537", "val"):
    ...     os.makedirs(f"imagenet/{folder}")
    ...     write_image(f"imagenet/{folder}/image_1.JPEG", np.zeros((8, 8, 3), np.uint8))
    >>> with open("imagenet/val.txt", "w") as file:
    ...     _ = file.write("image_1.JPEG 1")
    >>> data = ImageNet("imagenet", ImageReader(resize=(4, 4)))
    >>> data.classes, data.labels, data.sets
    (['n01440764', 'n01443537'], array([0, 1, 1]), array([1, 1, 2], dtype=uint8))
    """

    def __init__(
        self,
        root: str | PathLike[str],
        reader: Reader,
        *,
        names: Sequence[str] = ("input", "label"),
        val_reader: Reader | None = None,
    ) -> None:
        home = _home(Path(root))
        nearby = [Path(root), home, home / "val", *sorted(Path(root).glob("*devkit*/data"))]
        words = _words(nearby)
        self.classes = _classes(home, sorted(words))
        self.descriptions = [words.get(wnid, wnid) for wnid in self.classes]
        labels = {wnid: label for label, wnid in enumerate(self.classes)}
        listing = Listing()
        for name, number in (("train", TRAIN), ("val", VAL)):
            for wnid in _folders(home / name):
                if wnid in labels:
                    listing.add(files_in(home / name / wnid, required=name == "train"), labels[wnid], number)
        for path, wnid in _val_classes(home / "val", nearby, sorted(words) or self.classes):
            if wnid in labels:
                listing.add([path], labels[wnid], VAL)
        if (home / "test").is_dir():
            listing.add(files_in(home / "test"), UNKNOWN, TEST)
        super().__init__(
            listing.paths, reader, listing.labels, listing.sets, names=names, val_reader=val_reader
        )


def _home(root: Path) -> Path:
    """The folder that train and val are in."""
    homes = [root / place for place in PLACES]
    for home in homes:
        if (home / "train").is_dir() or (home / "val").is_dir():
            return home
    raise DataError(f"{root}: no folder train or val here, nor in {', '.join(PLACES[1:])}")


def _folders(folder: Path) -> list[str]:
    """The folders that are named like classes; none if `folder` is missing."""
    return [name for name in folders_in(folder) if WNID.fullmatch(name)] if folder.is_dir() else []


def _classes(home: Path, known: list[str]) -> list[str]:
    """The IDs of the classes: those to learn if there are any, else those of the validation images."""
    learned = _folders(home / "train")
    if (home / "train").is_dir() and not learned:
        raise DataError(f"{home / 'train'}: no folders here named like n01440764, one for each class")
    classes = learned or _folders(home / "val") or known
    if not classes:
        raise DataError(f"{home}: no classes are known. Put {WORDS[0]} there, which lists them")
    return classes


def _val_classes(folder: Path, nearby: list[Path], ordered: list[str]) -> list[tuple[str, str]]:
    """Path and class of each image in a folder without class folders; numbers of classes are in `ordered`."""
    paths = files_in(folder) if folder.is_dir() else []
    if not paths:
        return []
    if solution := _find(nearby, *SOLUTIONS):
        class_of = _solution(solution, ordered)
        unknown = [path for path in paths if Path(path).stem not in class_of]
        if unknown:
            raise DataError(f"{solution}: no line for {len(unknown)} images, such as {unknown[0]}")
        return [(path, class_of[Path(path).stem]) for path in paths]
    truth, meta = _find(nearby, GROUND_TRUTH), _find(nearby, *META)
    if truth is None or meta is None:
        raise DataError(
            f"{folder}: the classes of these {len(paths)} images are not known. Put {SOLUTIONS[0]} or "
            f"{SOLUTIONS[1]} into {nearby[0]}, or ILSVRC2012{GROUND_TRUTH[1:]} and {META[0]}, or the images "
            f"into a folder for each class"
        )
    return list(zip(paths, _truth(truth, [wnid for wnid, _ in _synsets(meta)], len(paths)), strict=True))


def _find(folders: list[Path], *patterns: str) -> Path | None:
    """The first file of such a name."""
    found = (path for pattern in patterns for folder in folders for path in sorted(folder.glob(pattern)))
    return next(found, None)


def _words(nearby: list[Path]) -> dict[str, str]:
    """What the classes are, by ID; nothing if no file says it."""
    if path := _find(nearby, *WORDS):
        pairs = (line.partition(" ") for line in _lines(path))
        return {wnid: words.strip() for wnid, _, words in pairs if WNID.fullmatch(wnid)}
    meta = _find(nearby, *META)
    return dict(_synsets(meta)) if meta else {}


def _synsets(path: Path) -> list[tuple[str, str]]:
    """IDs and words of the classes in the challenge's own order, from its meta.mat."""
    synsets = mat.read(path).get("synsets")
    records = synsets.records if isinstance(synsets, mat.StructArray) else []
    fields = [(record.get("WNID"), record.get("words")) for record in records[:CLASSES]]
    pairs = [(wnid, words) for wnid, words in fields if isinstance(wnid, str) and isinstance(words, str)]
    if not pairs or len(pairs) < len(fields):
        raise FileFormatError(f"{path}: expected a struct array synsets with WNID and words")
    return pairs


def _solution(path: Path, ordered: list[str]) -> dict[str, str]:
    """The class of each image, by its name without ending."""
    class_of = {}
    for number, line in enumerate(_lines(path), 1):
        match = SOLUTION.match(line)
        if not match and number > 1:
            raise FileFormatError(
                f"{path}, line {number}: expected an image and its class. Received: {line!r}"
            )
        if match:
            class_of[Path(match["image"]).stem] = match["wnid"] or _nth(ordered, int(match["number"]), path)
    return class_of


def _truth(path: Path, ordered: list[str], n: int) -> list[str]:
    """The class of each of the `n` images, in the order of their names."""
    lines = _lines(path)
    if len(lines) != n or not all(re.fullmatch(r"\s*\d{1,6}\s*", line) for line in lines):
        raise FileFormatError(
            f"{path}: expected {n} lines with a number, one for each image, found {len(lines)}"
        )
    return [_nth(ordered, int(line) - 1, path) for line in lines]


def _nth(ordered: list[str], k: int, path: Path) -> str:
    if not 0 <= k < len(ordered):
        raise FileFormatError(
            f"{path}: class {k}, counted from 0, is not among the {len(ordered)} classes known. "
            f"Put {WORDS[0]}, which lists all, beside the images"
        )
    return ordered[k]


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: expected text in UTF-8 ({error})") from error
