"""The pool of memory: nobody's array is ever given to somebody else, and none is lost."""

import ctypes
import gc
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import dagnn
from dagnn.backends.numpy import memory
from dagnn.backends.numpy.memory import ALIGNMENT, SLACK, SMALLEST, Pool

LARGE = (64, 1024)  # 256 KiB of float32
NBYTES = 4 * 64 * 1024


@pytest.fixture
def pool():
    return Pool()


def filled(pool, value, shape=LARGE):
    array = pool.empty(shape, np.float32)
    array.fill(value)
    return array


def where(array):
    return array.__array_interface__["data"][0]


ALIASES = {
    "the array": lambda a: a,
    "a view": lambda a: a[3:7, ::2],
    "a view of a view": lambda a: a[3:].T[::-1][2:],
    "a reshaped view": lambda a: a.reshape(-1),
    "another type": lambda a: a.view(np.uint32),
    "one element, as an array": lambda a: a[5, 5:6],
    "its flags' owner": lambda a: a.base,
    "a view of its base": lambda a: a.base.view(np.ndarray),
    "a part of its base": lambda a: a.base[128:256],
    "a subclass": lambda a: a.view(np.matrix),
    "a masked array": lambda a: np.ma.asarray(a),
    "a memoryview": memoryview,
    "a memoryview's part": lambda a: memoryview(a)[2:],
    "np.frombuffer": lambda a: np.frombuffer(a, np.float32),
    "as_strided": lambda a: np.lib.stride_tricks.as_strided(a, (4, 4), (4, 4)),
    "broadcast": lambda a: np.broadcast_to(a, (2, *LARGE)),
    "sliding windows": lambda a: np.lib.stride_tricks.sliding_window_view(a, (2, 2)),
    "dlpack": np.from_dlpack,
    "ctypes": lambda a: a.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
    "an iterator": lambda a: a.flat,
    "nditer": lambda a: np.nditer(a),
    "an element of an object array": lambda a: np.array([a, None], dtype=object),
    "a closure": lambda a: lambda: a,
}


@pytest.mark.parametrize("alias", ALIASES)
def test_what_a_user_keeps_is_never_given_away(pool, alias):
    array = filled(pool, 1)
    start, kept = where(array), ALIASES[alias](array)
    del array
    gc.collect()
    others = [filled(pool, 2) for _ in range(4)]
    assert start not in map(where, others)
    assert ctypes.c_float.from_address(start).value == 1
    del kept
    gc.collect()
    assert where(filled(pool, 3)) == start, "and when the last alias has died, it comes back"
    assert len({where(other) for other in others}) == 4


def test_scalars_and_copies_keep_nothing(pool):
    array = filled(pool, 1)
    start = where(array)
    kept = array[0, 0], array.copy(), array + 1, array[[1, 2]], array.tolist()
    del array
    assert where(filled(pool, 2)) == start
    assert kept[1][0, 0] == 1


def test_the_last_of_several_aliases_returns_it_once(pool):
    array = filled(pool, 1)
    start, aliases = where(array), [array[k:] for k in range(5)]
    del array
    while aliases:
        assert where(filled(pool, 2)) != start
        aliases.pop()
    first, second = filled(pool, 3), filled(pool, 4)
    assert {where(first), where(second)} >= {start}
    assert where(first) != where(second)
    assert first[0, 0] == 3


def test_cycles_come_back_with_the_garbage(pool):
    gc.disable()
    try:
        array = filled(pool, 1)
        start, cycle = where(array), [array]
        cycle.append(cycle)
        del array, cycle
        assert where(filled(pool, 2)) != start
        gc.collect()
        kept = [filled(pool, 3) for _ in range(2)]
        assert start in map(where, kept)
    finally:
        gc.enable()


def test_collection_within_the_pool_does_no_harm(pool, monkeypatch):
    """A collection may begin at any allocation, so also where the pool's lock is held."""

    class Node:
        def __init__(self):
            self.array, self.me = filled(pool, 1, (16, 1024)), self

    fresh = memory._aligned

    def collecting(nbytes):
        gc.collect()
        return fresh(nbytes)

    monkeypatch.setattr(memory, "_aligned", collecting)
    for _ in range(30):
        Node()
    array = filled(pool, 5, (16, 1024))
    assert (array == 5).all()
    assert pool.held <= 15 * 64 * 1024, "garbage was collected there, and its memory used again"


def test_arrays_die_where_the_pool_is_waited_for(pool):
    """A finaliser that asks the pool for memory finds it in order."""

    class Owner:
        pass

    owner = Owner()
    owner.array = filled(pool, 1)
    made = []
    weakref.finalize(owner, lambda: made.append(filled(pool, 2)))
    del owner
    assert made[0][0, 0] == 2


def test_threads_hammering_it(pool):
    """Whoever has an array finds in it what it wrote, whatever the others do."""
    wrong, start = [], threading.Barrier(8)

    def work(number):
        rng = np.random.default_rng(number)
        kept = []
        start.wait()
        for turn in range(300):
            value = 1000 * number + turn
            array = filled(pool, value, (int(rng.integers(10, 40)), 1024))
            kept.append((array[1:] if turn % 2 else array, value))
            if len(kept) > 6:
                view, expected = kept.pop(int(rng.integers(len(kept))))
                if not (view == expected).all():
                    wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.held <= SLACK * 8 * 8 * 40 * 4096
    pool.clear()
    assert pool.held == 0, "all of it had come back"


def test_an_array_may_die_on_another_thread(pool):
    box = [filled(pool, 1)]
    start = where(box[0])
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert where(filled(pool, 2)) == start


def test_clear_gives_up_what_is_idle_only(pool):
    kept, idle = filled(pool, 1), filled(pool, 2)
    del idle
    assert pool.held == 2 * NBYTES
    pool.clear()
    assert pool.held == NBYTES
    again = filled(pool, 3)
    assert kept[0, 0] == 1
    assert where(again) != where(kept)
    del kept, again
    pool.clear()
    assert pool.held == 0


def test_clear_lets_go_of_old_peaks(pool):
    many = [filled(pool, 1) for _ in range(20)]
    del many
    pool.clear()
    for rows in range(64, 128):
        filled(pool, 1, (rows, 1024))
    assert pool.held <= SLACK * 4 * 1024 * 128


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), st.integers(1, 5))
def test_it_stays_bounded_when_sizes_vary(rows, alive):
    """At most SLACK times the most that was ever in use, blocks larger than the request counted whole."""
    pool, kept, most = Pool(), [], 0
    for n in rows:
        kept.append(pool.empty((16 * n, 1024), np.float32))
        in_use = pool.held - sum(block[0] for block in pool._idle)
        most = max(most, in_use)
        assert in_use >= sum(array.nbytes for array in kept)
        assert pool.held <= SLACK * most
        kept = kept[-alive:]
    kept.clear()
    pool.clear()
    assert pool.held == 0


class Users(RuleBasedStateMachine):
    """Arrays come, go and leave views behind, in any order."""

    def __init__(self):
        super().__init__()
        self.pool, self.kept, self.number = Pool(), [], 0

    @rule(rows=st.integers(8, 40), view=st.booleans())
    def take(self, rows, view):
        self.number += 1
        array = filled(self.pool, self.number, (rows, 1024))
        self.kept.append((array[rows // 2 :] if view else array, self.number))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def drop(self, data):
        self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1)))

    @rule()
    def clear(self):
        self.pool.clear()

    @invariant()
    def everybody_has_their_own(self):
        assert all((array == number).all() for array, number in self.kept)


TestUsers = Users.TestCase


def test_memory_is_aligned_and_writeable(pool):
    for shape, dtype in (((100, 333), np.float32), ((3, 5, 7, 999), np.float64), (1 << 20, np.uint8)):
        array = pool.empty(shape if isinstance(shape, tuple) else (shape,), dtype)
        assert where(array) % ALIGNMENT == 0
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert type(array) is np.ndarray
        assert array.dtype == dtype


def test_small_and_empty_arrays_are_numpys(pool):
    assert pool.empty((SMALLEST // 4 - 1,), np.float32).base is None
    assert pool.empty((0, 1 << 20), np.float32).shape == (0, 1 << 20)
    assert pool.empty((), np.float64).shape == ()
    assert pool.held == 0


def test_too_much_is_refused_and_nothing_lost(pool):
    array = filled(pool, 1)
    with pytest.raises(MemoryError):
        pool.empty((1 << 20, 1 << 30), np.float64)
    del array
    assert pool.held == NBYTES
    assert filled(pool, 2)[0, 0] == 2
    pool.clear()
    assert pool.held == 0


def test_evaluations_use_the_same_memory_again():
    """And what a user keeps of one evaluation is as it was after the next ones."""
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv((8, 8, 3, 3), pad=1), "x", "c")
    net.add_layer("relu", dagnn.ReLU(), "c", "r")
    net.add_layer("pool", dagnn.Pooling(pool_size=2, stride=2), "r", "y")
    net.init_params()
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((4, 8, 64, 64)).astype(np.float32) for _ in range(4)]
    seed = np.ones((4, 8, 32, 32), np.float32)

    def evaluate(x):
        y = net.eval({"x": x}, {"y": seed}, keep=["c"], ders=["x"])["y"]
        return y, net.vars["c"].value[1:, ::2], net.vars["x"].der, net.params["conv_filters"].der

    expected = [[array.copy() for array in evaluate(x)] for x in inputs]
    kept = [evaluate(x) for x in inputs]
    held = memory.pool.held
    for _ in range(5):
        for x in inputs:
            evaluate(x)
    for one, other in zip(kept, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert memory.pool.held <= 1.5 * held


def test_a_large_block_is_not_spent_on_a_small_request(pool):
    large = pool.empty((16, *LARGE), np.float32)
    place = where(large)
    del large
    small = pool.empty((SMALLEST // 4,), np.float32)
    assert where(small) != place
    assert where(pool.empty((16, *LARGE), np.float32)) == place
