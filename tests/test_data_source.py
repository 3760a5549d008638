"""Data to train on: sets, arrays in memory, changes to batches."""

import numpy as np
import pytest

from dagnn.data import Arrays, Data, Mapped
from dagnn.errors import DataError, OptionError, ShapeError

rng = np.random.default_rng(0)
X, Y = rng.random((7, 2, 3, 3)).astype(np.float32), np.arange(7)


# ---- sets


@pytest.mark.parametrize(
    "sets",
    [[1, 2, 3, 0, 1, 1, 2], np.array([[1.0, 2, 3, 0, 1, 1, 2]]), np.array([1, 2, 3, 0, 1, 1, 2], "u1")],
)
def test_sets_divide_the_samples(sets):
    data = Arrays({"x": X}, sets)
    assert data.train.tolist() == [0, 4, 5] and data.val.tolist() == [1, 6] and data.test.tolist() == [2]
    assert data.sets.dtype == np.uint8 and len(data) == 7


def test_without_sets_all_are_for_training():
    data = Arrays({"x": X})
    assert data.train.tolist() == list(range(7)) and not len(data.val) and not len(data.test)


def test_sets_are_a_copy():
    sets = np.ones(7, np.uint8)
    data = Arrays({"x": X}, sets)
    sets[:] = 3
    assert len(data.train) == 7


@pytest.mark.parametrize("sets", [[1, 2], 1, [[1] * 7] * 2, [], "train"])
def test_sets_of_another_length_are_refused(sets):
    with pytest.raises(ShapeError, match=r"one number per sample, 7\. Received: "):
        Arrays({"x": X}, sets)


@pytest.mark.parametrize("wrong", [4, -1, 257, 1.5, np.nan, None, "train", 1j])
def test_sets_there_are_not_are_refused(wrong):
    with pytest.raises(OptionError, match=r"sets are 1 \(train\), .*\. Received: "):
        Arrays({"x": X}, [wrong] * 7)


def test_a_subclass_needs_a_length_and_batches():
    with pytest.raises(NotImplementedError):
        Data()
    with pytest.raises(NotImplementedError):
        Data.batch(Arrays({"x": X}), [0])


# ---- arrays


@pytest.mark.parametrize(
    "indices", [[3], [6, 0, 0], range(2, 5), np.array([5, 1], np.uint8), rng.permutation(7), [], np.array([])]
)
def test_batches_are_rows(indices):
    batch = Arrays({"x": X, "y": Y}).batch(indices)
    where = [int(k) for k in indices]
    assert batch["x"].shape == (len(where), 2, 3, 3) and batch["x"].dtype == np.float32
    assert batch["y"].tolist() == where
    for row, k in zip(batch["x"], where, strict=True):
        np.testing.assert_array_equal(row, X[k])


def test_batches_are_copies():
    data = Arrays({"x": X.copy()})
    data.batch([0, 1])["x"][:] = -1
    np.testing.assert_array_equal(data.batch([0, 1])["x"], X[:2])


@pytest.mark.parametrize("indices", [[7], [-1], [0, 99]])
def test_samples_there_are_not(indices):
    with pytest.raises(DataError, match=r"there are 7 samples, from 0\. Received: (7|-1|99)$"):
        Arrays({"x": X}).batch(indices)


@pytest.mark.parametrize("indices", [3, [[0, 1]], [0.0], ["0"], [True] * 7, None, slice(2)])
def test_what_is_no_list_of_numbers_is_refused(indices):
    with pytest.raises(OptionError, match="indices are numbers of samples, in one dimension"):
        Arrays({"x": X}).batch(indices)


@pytest.mark.parametrize(
    "arrays", [{}, {"x": 3}, {"x": X, "y": Y[1:]}, {"x": X, "y": 1}, {"x": [[1], [1, 2]]}]
)
def test_arrays_that_do_not_go_together_are_refused(arrays):
    with pytest.raises(ShapeError):
        Arrays(arrays)


# ---- changes


def test_changes_are_applied_in_order():
    def add(batch, rng):
        return {**batch, "y": batch["y"] + 1}

    data = Arrays({"x": X, "y": Y}, [1, 2, 2, 1, 3, 0, 1]).map(add).map(lambda b, rng: {"z": 2 * b["y"]})
    assert isinstance(data, Mapped) and len(data) == 7
    assert data.val.tolist() == [1, 2] and data.test.tolist() == [4]
    assert data.batch([5, 0])["z"].tolist() == [12, 2]


def test_changes_get_the_generator():
    data = Arrays({"y": Y}).map(lambda batch, rng: {"r": None if rng is None else rng.random()})
    assert data.batch([0])["r"] is None
    first, second = (data.batch([0], np.random.default_rng(5))["r"] for _ in range(2))
    assert first == second == np.random.default_rng(5).random()


def test_arrays_of_a_device_are_refused():
    class OnDevice:
        def __array__(self, *_, **__):
            raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    with pytest.raises(OptionError, match="'x' should be an array of NumPy.*Received: OnDevice"):
        Arrays({"x": OnDevice()})
