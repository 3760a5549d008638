"""Fetching the files of well-known datasets, whose contents are known."""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj

from ..errors import DataError, FileFormatError, OptionError, missing_package
from ..io.atomic import replacing


@dataclass(frozen=True)
class Source:
    """Where files come from: an address that their names follow, and their SHA-256.

    Of an archive, `members` are taken out, everything in it that is needed.
    """

    address: str
    files: Mapping[str, str]
    members: tuple[str, ...] = ()


TORONTO = "https://www.cs.toronto.edu/~kriz/"

SOURCES = {
    "mnist": Source(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar-10": Source(
        TORONTO,
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        (
            *(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
            "cifar-10-batches-bin/test_batch.bin",
            "cifar-10-batches-bin/batches.meta.txt",
        ),
    ),
    "cifar-10-python": Source(
        TORONTO,
        {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
        (
            *(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
            "cifar-10-batches-py/test_batch",
            "cifar-10-batches-py/batches.meta",
        ),
    ),
    "cifar-100": Source(
        TORONTO,
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
        (
            "cifar-100-binary/train.bin",
            "cifar-100-binary/test.bin",
            "cifar-100-binary/fine_label_names.txt",
            "cifar-100-binary/coarse_label_names.txt",
        ),
    ),
    "cifar-100-python": Source(
        TORONTO,
        {"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
        ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"),
    ),
}


def fetch(name: str, root: str | os.PathLike[str]) -> list[Path]:
    """Download the files of a dataset into the folder `root`, unpack them, and return where they are.

    `name` is "mnist", "fashion-mnist", "cifar-10", "cifar-100", "cifar-10-python" or "cifar-100-python".
    Every file must have the SHA-256 that is known of it; what is there already and has it isn't downloaded
    again, so files can be brought by other means. Nothing there is overwritten by a download. Of an archive
    only the files that are needed are taken, each all or nothing.

    Raises
    ------
    DataError : a file cannot be had, or isn't the one it should be; the message says what to put where.
    MissingPackageError : pooch isn't installed, and something has to be downloaded.
    """
    source = _source(name)
    folder = Path(root)
    for file, sha256 in source.files.items():
        path = folder / file
        if not path.exists():
            _download(name, folder, file)
        elif (found := _sha256(path)) != sha256:
            raise DataError(
                f"{path} isn't {source.address}{file}: its SHA-256 is {found}, not {sha256}. Move it away.\n"
                + instructions(name, root)
            )
        if source.members:
            _unpack(path, source.members, folder)
    return [folder / file for file in source.members or source.files]


def instructions(name: str, root: str | os.PathLike[str]) -> str:
    """How to get the files of a dataset by hand.

    >>> print(instructions("cifar-100", "data"))
    To get it by hand, put these files into data and call fetch('cifar-100', 'data'), which checks and unpacks
    them:
      https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz
    """
    source = _source(name)
    root = os.fspath(root)
    checks = "checks and unpacks" if source.members else "checks"
    call = f"fetch({name!r}, {root!r})"
    first = f"To get it by hand, put these files into {root} and call {call}, which {checks} them:"
    return "\n".join([first, *(f"  {source.address}{file}" for file in source.files)])


def missing_files(name: str, root: str | os.PathLike[str], missing: Sequence[str]) -> DataError:
    """The error for files of a dataset that aren't in `root`."""
    return DataError(
        f"{os.fspath(root)} has no {', '.join(missing)}; download=True fetches what is missing.\n"
        + instructions(name, root)
    )


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise OptionError(f"Datasets to fetch are {', '.join(SOURCES)}. Received: {name!r}")
    return SOURCES[name]


def _download(name: str, folder: Path, file: str) -> None:
    try:
        import pooch
    except ImportError:
        raise missing_package("a download", "pooch", "data") from None
    source = SOURCES[name]
    try:
        pooch.retrieve(
            source.address + file,
            known_hash=f"sha256:{source.files[file]}",
            fname=file,
            path=folder,
            progressbar=sys.stderr.isatty(),
        )
    except (OSError, ValueError) as error:  # no network, no disk; another SHA-256
        raise DataError(
            f"{source.address}{file} could not be downloaded: {error}\n{instructions(name, folder)}"
        ) from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, members: Sequence[str], folder: Path) -> None:
    """Copy the contents of `members` out of the archive; no other path in it, nor any link, matters."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in members:
                content = tar.extractfile(tar.getmember(name)) if tar.getmember(name).isfile() else None
                if content is None:
                    raise FileFormatError(f"{archive}: {name} is no plain file")
                path = folder / name
                path.parent.mkdir(exist_ok=True)
                with replacing(path) as file:
                    copyfileobj(content, file)
    except (KeyError, EOFError, tarfile.TarError, zlib.error) as error:
        raise FileFormatError(f"{archive} is damaged: {error}") from error
