"""Fetching datasets, from files that stand in for the network."""

import hashlib
import io
import shutil
import sys
import tarfile

import numpy as np
import pooch
import pytest
import requests

from dagnn.data import Cifar10, Cifar100, Mnist, fetch, write_cifar10, write_idx
from dagnn.data.cifar_files import CIFAR10, FINE, layouts
from dagnn.data.download import SOURCES, Source
from dagnn.errors import DataError, FileFormatError, MissingPackageError, OptionError

ADDRESS = "https://data.example/"
NAMES = [f"class {i}" for i in range(10)]


class Server:
    """Files by name, instead of what is at ADDRESS; pooch does the rest."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.requests = []
        self.offline = False

    def download(self, url, output, pooch):
        assert url.startswith(ADDRESS)
        self.requests.append(url.removeprefix(ADDRESS))
        if self.offline:
            raise requests.exceptions.ConnectionError("name resolution failed")
        shutil.copy(self.folder / self.requests[-1], output)

    def offer(self, monkeypatch, name, members=()):
        """Let `fetch(name)` take what is in the folder now."""
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(self.folder.iterdir())}
        monkeypatch.setitem(SOURCES, name, Source(ADDRESS, files, tuple(members)))


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server(tmp_path / "server")
    monkeypatch.setattr(pooch.core, "choose_downloader", lambda *args, **kwargs: server.download)
    return server


@pytest.fixture
def mnist(server, monkeypatch):
    for part, n in ("train", 6), ("t10k", 2):
        write_idx(server.folder / f"{part}-images-idx3-ubyte.gz", np.full((n, 28, 28), n, np.uint8))
        write_idx(server.folder / f"{part}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8))
    server.offer(monkeypatch, "mnist")
    return server


def test_files_are_fetched_once(mnist, tmp_path):
    paths = fetch("mnist", tmp_path / "new" / "root")
    assert sorted(p.name for p in paths) == sorted(mnist.requests) and len(paths) == 4
    for path in paths:
        assert path.read_bytes() == (mnist.folder / path.name).read_bytes()
    assert fetch("mnist", tmp_path / "new" / "root") == paths
    assert len(mnist.requests) == 4


def test_files_brought_by_hand_are_not_fetched(mnist, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    shutil.copytree(mnist.folder, tmp_path / "root")
    assert len(fetch("mnist", tmp_path / "root")) == 4
    assert not mnist.requests


def test_datasets_fetch_what_is_missing(mnist, tmp_path):
    with pytest.raises(DataError, match="train-labels-idx1-ubyte.*download=True"):
        Mnist(tmp_path / "root")
    assert not mnist.requests
    data = Mnist(tmp_path / "root", download=True)
    assert len(data) == 8 and len(mnist.requests) == 4
    (tmp_path / "root" / "t10k-images-idx3-ubyte.gz").unlink()
    Mnist(tmp_path / "root", download=True)
    Mnist(tmp_path / "root", download=True)
    assert mnist.requests[4:] == ["t10k-images-idx3-ubyte.gz"]


def test_without_a_network_the_error_says_what_to_do(mnist, tmp_path):
    mnist.offline = True
    with pytest.raises(DataError) as error:
        Mnist(tmp_path / "root", download=True)
    text = str(error.value)
    assert text.startswith(f"{ADDRESS}t10k-images")
    assert "name resolution failed" in text and f"into {tmp_path / 'root'} and call fetch('mnist'" in text
    for path in mnist.folder.iterdir():
        assert f"  {ADDRESS}{path.name}" in text.splitlines()


def test_what_was_downloaded_must_have_its_hash(mnist, tmp_path):
    good = (mnist.folder / "t10k-labels-idx1-ubyte.gz").read_bytes()
    (mnist.folder / "t10k-labels-idx1-ubyte.gz").write_bytes(good[:-1] + b"!")
    with pytest.raises(
        DataError, match=r"(?s)t10k-labels-idx1-ubyte.gz could not be downloaded: .*hash.*by hand"
    ):
        fetch("mnist", tmp_path / "root")
    left = [p.name for p in (tmp_path / "root").iterdir()]
    assert "t10k-labels-idx1-ubyte.gz" not in left and set(left) <= set(mnist.requests)


def test_another_file_of_that_name_is_not_overwritten(mnist, tmp_path):
    path = tmp_path / "root" / "t10k-labels-idx1-ubyte.gz"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    found = hashlib.sha256(b"mine").hexdigest()
    with pytest.raises(
        DataError, match=rf"(?s)its SHA-256 is {found}, not [0-9a-f]{{64}}. Move it away.*by hand"
    ):
        fetch("mnist", path.parent)
    assert path.read_bytes() == b"mine"


def test_a_folder_that_cannot_be_made(mnist, tmp_path):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch("mnist", tmp_path / "root")


def test_pooch_is_optional(mnist, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingPackageError, match=r"dagnn\[data\]"):
        fetch("mnist", tmp_path / "root")


def test_unknown_names():
    with pytest.raises(OptionError, match="mnist, fashion-mnist, cifar-10.*Received: 'emnist'"):
        fetch("emnist", "nowhere")


# ---- archives


@pytest.fixture
def cifar(server, tmp_path):
    """The parts of an archive by name."""
    images = np.arange(7 * 3072, dtype=np.uint8).reshape(7, 3, 32, 32)
    write_cifar10(tmp_path / "made", images[:5], range(5), images[5:], [8, 9], NAMES)
    files = sorted((tmp_path / "made" / "cifar-10-batches-bin").iterdir())
    return {f"cifar-10-batches-bin/{path.name}": path.read_bytes() for path in files}


def pack(path, parts):
    """An archive of contents, or of links if a part is a text."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in parts.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_archives_are_unpacked(server, cifar, tmp_path, monkeypatch):
    pack(server.folder / "cifar.tar.gz", cifar)
    server.offer(monkeypatch, "cifar-10", cifar)
    data = Cifar10(tmp_path / "root", download=True)
    np.testing.assert_array_equal(data.labels, [0, 1, 2, 3, 4, 8, 9])
    assert data.classes == NAMES and server.requests == ["cifar.tar.gz"]
    damaged = tmp_path / "root" / "cifar-10-batches-bin" / "test_batch.bin"
    damaged.write_bytes(b"")
    fetch("cifar-10", tmp_path / "root")
    assert damaged.read_bytes() == cifar["cifar-10-batches-bin/test_batch.bin"]
    assert server.requests == ["cifar.tar.gz"]


def test_only_the_members_that_are_needed_leave_an_archive(server, cifar, tmp_path, monkeypatch):
    others = {
        "../outside": b"evil",
        str(tmp_path / "absolute"): b"evil",
        "cifar-10-batches-bin/../../outside2": b"evil",
        "cifar-10-batches-bin/link": "/etc/passwd",
        "cifar-10-batches-bin/readme.html": b"<html>",
    }
    pack(server.folder / "cifar.tar.gz", others | cifar)
    server.offer(monkeypatch, "cifar-10", cifar)
    before = set(tmp_path.rglob("*"))
    fetch("cifar-10", tmp_path / "root")
    new = {str(p.relative_to(tmp_path / "root")) for p in set(tmp_path.rglob("*")) - before if p.is_file()}
    assert new == {"cifar.tar.gz", *cifar}


@pytest.mark.parametrize("link", ["/etc/passwd", "data_batch_1.bin"])
def test_links_are_no_contents(server, cifar, tmp_path, monkeypatch, link):
    pack(server.folder / "cifar.tar.gz", cifar | {"cifar-10-batches-bin/test_batch.bin": link})
    server.offer(monkeypatch, "cifar-10", cifar)
    with pytest.raises(FileFormatError, match=r"test_batch.bin is no plain file"):
        fetch("cifar-10", tmp_path / "root")


def test_archives_that_are_damaged(server, cifar, tmp_path, monkeypatch):
    path = server.folder / "cifar.tar.gz"
    pack(path, cifar)
    whole = path.read_bytes()
    for number, content in enumerate([whole[:-2000], whole[:500], b"no archive", b""]):
        path.write_bytes(content)
        server.offer(monkeypatch, "cifar-10", cifar)
        with pytest.raises(FileFormatError, match=r"cifar.tar.gz is damaged"):
            fetch("cifar-10", tmp_path / f"root{number}")
    pack(path, {name: content for name, content in cifar.items() if "meta" not in name})
    server.offer(monkeypatch, "cifar-10", cifar)
    with pytest.raises(FileFormatError, match=r"cifar.tar.gz is damaged: .*batches.meta.txt"):
        fetch("cifar-10", tmp_path / "root")


@pytest.mark.parametrize("dataset", [Cifar10, Cifar100])
def test_missing_archives_come_with_what_to_do(tmp_path, dataset):
    with pytest.raises(DataError, match=r"(?s)has no .*download=True.*checks and unpacks them:\n  https://"):
        dataset(tmp_path)


# ---- the table of what is where


def test_what_is_fetched_is_what_is_read():
    for name, labels, number in [
        ("cifar-10", CIFAR10, 0),
        ("cifar-10-python", CIFAR10, 1),
        ("cifar-100", FINE, 0),
        ("cifar-100-python", FINE, 1),
    ]:
        layout = layouts(labels)[number]
        assert {f"{layout.folder}/{file}" for file in layout.files} <= set(SOURCES[name].members)


def test_hashes_are_hashes():
    found = [sha256 for source in SOURCES.values() for sha256 in source.files.values()]
    assert len(set(found)) == 12 and all(len(bytes.fromhex(text)) == 32 for text in found)
    assert all(
        source.address.startswith("http") and source.address.endswith("/") for source in SOURCES.values()
    )
