"""Pickles that are read and never executed."""

import hashlib
import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest
from python2_pickles import WRITERS, as_python2, nested

from dagnn.data.cifar_pickle import PickledArray, Program, read_pickle
from dagnn.errors import FileFormatError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
rng = np.random.default_rng(0)


def test_the_names_of_cifar10_as_they_were_published(tmp_path):
    names = {"num_cases_per_batch": 10000, "label_names": NAMES, "num_vis": 3072}
    content = as_python2(names)
    assert hashlib.md5(content).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888"  # that of batches.meta
    assert read(tmp_path, content) == names


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", ["mkdir", "eval", "getattr"])
def test_nothing_is_executed(tmp_path, protocol, function):
    target = str(tmp_path / "evil")
    call = {
        "mkdir": (os.mkdir, (target,)),
        "eval": (eval, (f"__import__('os').mkdir({target!r})",)),
        "getattr": (getattr, ("", "join")),
    }[function]
    path = tmp_path / "data"
    path.write_bytes(pickle.dumps({"data": Evil(*call)}, protocol))
    with pytest.raises(FileFormatError, match=f"{path}: before byte"):
        read_pickle(path)
    assert not os.path.exists(target)
    if function == "mkdir":  # it would have been
        pickle.loads(path.read_bytes())
        assert os.path.exists(target)


def read(tmp_path, content):
    (tmp_path / "data").write_bytes(content)
    return read_pickle(tmp_path / "data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02cnumpy\nfromfile\nU\x01a\x85R.", "call of 'numpy.fromfile'"),
        (b"\x80\x02cnumpy\ndtype\n).", "expected a dictionary and nothing else"),
        (b"\x80\x02}}.", "expected a dictionary and nothing else"),
        (b"\x80\x02}cnumpy\ndtype\n)R.", "call of 'numpy.dtype'"),
        (b"\x80\x02}NR.", "call of 'dict'"),
        (b"\x80\x02}Nb.", "neither an array nor its type"),
        (b"\x80\x02}(.", "nothing else"),
        (b"\x80\x02t.", "no mark"),
        (b"\x80\x02K\x01\x86.", "fewer values"),
        (b"\x80\x02}K\x01a.", "no list"),
        (b"\x80\x02}(U\x01au.", "without a value"),
        (b"\x80\x02]U\x01aNs.", "no dictionary"),
        (b"\x80\x02}K\x01Ns.", "a key that is no text"),
        (b"\x80\x02}h\x05.", "remembered as 5"),
        (b"\x80\x02}(K\x01K\x02\x93.", "a name that is no text"),
        (b"\x80\x02c__builtin__\nset\n.", "expected a dictionary"),
        (b"\x80\x02i__builtin__\nset\n.", "b'i' is no instruction"),
        (b"\x80\x02P12\n.", "b'P' is no instruction"),
        (b"\x80\x02\x82\x01.", "x82' is no instruction"),
        (b"\x80\x02}", "1 bytes should follow, and there are 0"),
        (b"", "1 bytes should follow, and there are 0"),
        (b"\xff", "no instruction"),
        (b"\x80\x02cnumpy\nU\x01a.", "a name that doesn't end"),
        (b"\x80\x02c" + b"a" * 200 + b"\nb\n.", "a name that doesn't end"),
        (b"\x80\x02c\xff\nb\n.", "ascii"),
        (b"\x80\x02X\x01\0\0\0\xff.", "utf-8"),
        (b"\x80\x02" + b"]" * 1_100_000 + b".", "fewer than 1000000"),
        (b"s.", "fewer values"),
        (b"a.", "fewer values"),
        (b"q\x01.", "no value"),
        (b"\x80\x02T\xff\xff\xff\x7fabc", "2147483647 bytes should follow, and there are 3"),
        (b"\x80\x02T\xff\xff\xff\xffabc", "-1 bytes should follow"),
    ],
)
def test_programs_that_make_no_sense(tmp_path, content, message):
    with pytest.raises(FileFormatError, match=message):
        read(tmp_path, content)


def test_arrays_in_columns():
    array = np.asfortranarray(rng.integers(0, 256, (5, 7), np.uint8))
    np.testing.assert_array_equal(Program(pickle.dumps({"data": array}, 4)).run()["data"].matrix(), array)


@pytest.fixture(params=WRITERS)
def small(request):
    value = {"labels": [1, 300], "data": np.zeros((2, 3), np.uint8), "names": ["a", "b"]}
    return WRITERS[request.param](value)


def test_every_truncation_is_found(small):
    assert Program(small).run()["labels"] == [1, 300]
    for length in range(len(small)):
        with pytest.raises(ValueError):
            Program(small[:length]).run()


def test_mutations_give_plain_values_or_an_error(small):
    opcodes = [ord(op.code) for op in pickletools.opcodes]
    errors = 0
    for _ in range(3000):
        damaged = bytearray(small)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = (
                rng.choice(opcodes) if rng.random() < 0.5 else rng.integers(256)
            )
        try:
            value = Program(bytes(damaged)).run().get("data")
            if isinstance(value, PickledArray):
                assert value.matrix().dtype == np.uint8
        except ValueError:
            errors += 1
    assert errors > 1000


@pytest.mark.parametrize("end", [b"Ns.", b"N\x93.", b"NR.", b"Nb.", b"\x85b."])
def test_values_of_exponential_size_cost_nothing(tmp_path, end):
    with pytest.raises(FileFormatError):
        read(tmp_path, b"\x80\x04}" + nested(60) + end)


def test_memory_is_that_of_the_file(tmp_path):
    text = b"T" + struct.pack("<i", 1_000_000) + bytes(1_000_000) + b"q\0"
    array = b"cnumpy.core.multiarray\n_reconstruct\nN\x85R(K\0K\1K\1\x86Nh\0h\0tb"
    tracemalloc.start()
    with pytest.raises(FileFormatError):
        read(tmp_path, b"\x80\2" + text + 1000 * array + b".")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
