"""Pieces of work on threads: how many, the same results, and BLAS as it was afterwards."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import dagnn
from dagnn.backends.numpy import threads
from dagnn.errors import OptionError

NO_LIMIT = 1 << 16  # cores, where a container has no quota


@pytest.fixture
def set_threads():
    """`set_num_threads`, undone afterwards."""
    yield dagnn.set_num_threads
    dagnn.set_num_threads(None)


def in_a_process(code, **environment):
    """What `code` prints in a process of its own, where nobody has said how many threads to use."""
    inherited = {name: value for name, value in os.environ.items() if name != "DAGNN_NUM_THREADS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def blas_threads():
    return [
        library["num_threads"]
        for library in threadpool_info()
        if library["user_api"] == "blas" and "numpy" in library["filepath"]
    ]


def test_each_keeps_the_order_and_restores_blas():
    before = blas_threads()
    inside = threads.each(lambda k: (k, blas_threads()), range(20))
    assert [k for k, _ in inside] == list(range(20))
    assert {n for _, counts in inside for n in counts} <= {1}
    assert blas_threads() == before


def test_errors_come_out_and_restore_blas():
    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        threads.each(lambda k: 1 / k, [1, 0, 2])
    assert blas_threads() == before


def test_shares_cover_everything_once():
    for n in range(6):
        pieces = [piece for part in threads.share(range(n)) for piece in part]
        assert sorted(pieces) == list(range(n))


def test_shares_are_for_one_number_of_threads(monkeypatch):
    numbers = iter([3, 2, 5, 4, 1, 1])
    monkeypatch.setattr(threads, "num_threads", lambda: next(numbers))
    assert [list(part) for part in threads.share(range(5))] == [[0, 3], [1, 4], [2]]


@pytest.mark.parametrize("number", ["1", "2", "3"])
def test_the_number_of_threads_changes_results_by_rounding_only(number, tmp_path):
    code = """
import sys, numpy as np
from dagnn.backends import numpy as kernels
rng = np.random.default_rng(0)
x, w = rng.standard_normal((3, 8, 40, 40)), rng.standard_normal((8, 8, 3, 3))
y = kernels.conv(x, w, stride=2, pad=1)
ders = kernels.conv_dzdx(y, w, x.shape, stride=2, pad=1), kernels.conv_dzdw(y, x, w.shape, stride=2, pad=1)
np.savez(sys.argv[1], y=y, dzdx=ders[0], dzdw=ders[1])
"""
    for name, count in (("one", "1"), ("many", number), ("again", number)):
        environment = {**os.environ, "DAGNN_NUM_THREADS": count}
        subprocess.run([sys.executable, "-c", code, tmp_path / f"{name}.npz"], env=environment, check=True)
    one, many, again = (np.load(tmp_path / f"{name}.npz") for name in ("one", "many", "again"))
    for name in one:
        assert np.allclose(many[name], one[name], rtol=1e-12, atol=1e-12)
        assert np.array_equal(many[name], again[name]), "the same for the same number of threads"


def test_blas_has_one_thread_whoever_comes_in_first_and_leaves_last():
    before, seen = blas_threads(), []
    with threads.one_thread:  # a first thread, which lives on
        pass

    def inside(entered=None, leave=None):
        with threads.one_thread:
            seen.append(blas_threads())
            if entered is not None:
                entered.set()
                leave.wait(60)
            seen.append(blas_threads())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(inside).result()
        assert blas_threads() == before
        entered, leave = threading.Event(), threading.Event()
        with threads.one_thread:
            last = pool.submit(inside, entered, leave)
            assert entered.wait(60)
        assert set(blas_threads()) == {1}
        leave.set()
        last.result()
    assert all(set(counts) == {1} for counts in seen)
    assert blas_threads() == before


def test_another_thread_gets_the_same_bits():
    """BLAS on two threads adds up long sums in another order."""
    code = """
import threading, numpy as np
from dagnn.backends import numpy as kernels
rng = np.random.default_rng(0)
x, dzdy = (rng.standard_normal((4, c, 50, 50), dtype="f") for c in (3, 8))
found = []
def work():
    found.append(kernels.conv_dzdw(dzdy, x, (8, 3, 3, 3), pad=1))
work()
other = threading.Thread(target=work)
other.start()
other.join()
print(np.array_equal(*found))
"""
    assert in_a_process(code, DAGNN_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2") == "True"


def test_nets_on_several_threads_do_not_disturb_each_other():
    def evaluate(seed):
        net = dagnn.DagNN()
        net.add_layer("c", dagnn.Conv((8, 3, 3, 3), pad=1), "x", "y")
        net.init_params(seed)
        x = np.random.default_rng(seed).standard_normal((2, 3, 64, 64)).astype(np.float32)
        for _ in range(5):
            out = net.eval({"x": x}, {"y": x[:, :1].repeat(8, 1)})["y"]
        return out, net.params["c_filters"].der

    before = blas_threads()
    alone = [evaluate(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(evaluate, range(6)))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
    assert blas_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own():
    """A data loader may fork after convolutions have run."""
    code = """
import os, signal, numpy as np
from dagnn.backends import numpy as kernels
x, w = np.ones((4, 16, 64, 64), np.float32), np.ones((16, 16, 3, 3), np.float32)
before = kernels.conv(x, w, pad=1)
child = os.fork()
if not child:
    signal.alarm(60)  # ends a child that hangs
    os._exit(0 if np.array_equal(kernels.conv(x, w, pad=1), before) else 1)
raise SystemExit(os.waitpid(child, 0)[1])
"""
    environment = {**os.environ, "DAGNN_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_pieces_of_pieces_do_not_wait_for_each_other():
    assert threads.each(lambda i: threads.each(lambda j: i * j, [1, 2]), range(4))[3] == [3, 6]


# ---- how many


def test_set_num_threads(set_threads):
    default = dagnn.num_threads()
    set_threads(3)
    assert dagnn.num_threads() == 3
    assert len(threads.share(range(10))) == 3
    set_threads(None)
    assert dagnn.num_threads() == default


@pytest.mark.parametrize("bad", [0, -1, 1.5, 2.0, "2", "two", [2], float("nan")])
def test_numbers_of_threads_that_are_none(set_threads, bad):
    set_threads(2)
    with pytest.raises(OptionError, match=r"at least 1, or None\. Received: "):
        set_threads(bad)
    assert dagnn.num_threads() == 2


@pytest.mark.parametrize("number", [1, 2, 5])
def test_as_many_threads_as_were_asked_for_work_at_once(set_threads, number):
    set_threads(number)
    everybody = threading.Barrier(number, timeout=30)  # broken unless as many threads meet there
    seen = threads.each(lambda piece: (everybody.wait(), threading.get_ident())[1], range(number))
    assert len(set(seen)) == number
    assert threading.get_ident() in seen, "the caller works too"


def test_little_work_stays_with_the_caller(set_threads):
    set_threads(3)
    here = threading.get_ident()
    assert set(threads.each(lambda _: threading.get_ident(), range(20), threads=1)) == {here}
    assert threads.share(range(5), threads=1) == [range(5)]
    assert threads.each(lambda _: set(blas_threads()), range(2), threads=1) in ([{1}] * 2, [set()] * 2), (
        "BLAS, too"
    )


def test_fewer_threads_after_more(set_threads):
    set_threads(4)
    threads.each(lambda k: k, range(8))
    set_threads(1)
    assert set(threads.each(lambda k: threading.get_ident(), range(20))) == {threading.get_ident()}


NUMBER = "import dagnn; print(dagnn.num_threads())"


@pytest.mark.parametrize(("given", "number"), [("1", 1), ("3", 3), ("64", 64)])
def test_the_environment_says_how_many(given, number):
    assert in_a_process(NUMBER, DAGNN_NUM_THREADS=given) == str(number)


@pytest.mark.parametrize("given", ["", "0", "-2", "1.5", "many", " "])
def test_what_the_environment_says_may_be_nonsense(given):
    assert in_a_process(NUMBER, DAGNN_NUM_THREADS=given) == in_a_process(NUMBER)


def test_a_call_outdoes_the_environment():
    code = "import dagnn; dagnn.set_num_threads(2); print(dagnn.num_threads()); dagnn.set_num_threads(None)"
    assert in_a_process(f"{code}; print(dagnn.num_threads())", DAGNN_NUM_THREADS="5").split() == ["2", "5"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_cores_are_those_the_process_may_run_on():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    assert in_a_process(f"{code}; {NUMBER}") == "1"
    assert in_a_process(f"{code}; {NUMBER}", DAGNN_NUM_THREADS="2") == "2"
    assert int(in_a_process(NUMBER)) <= len(os.sched_getaffinity(0))


# ---- containers


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # rounded up
        ("50000 100000\n", 1),
        ("1000 1000000\n", 1),
        ("400000 50000", 8),
        ("max 100000\n", NO_LIMIT),
        ("", NO_LIMIT),
        ("100000\n", NO_LIMIT),
        ("nonsense here\n", NO_LIMIT),
    ],
)
def test_quota_of_version_2(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    assert threads._cgroup_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"),
    [
        ("300000\n", "100000\n", 3),
        ("250000\n", "100000\n", 3),
        ("10000\n", "100000\n", 1),
        ("-1\n", "100000\n", NO_LIMIT),
    ],
)
def test_quota_of_version_1(tmp_path, quota, period, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    assert threads._cgroup_cores(tmp_path) == NO_LIMIT, "half of it says nothing"
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(period)
    assert threads._cgroup_cores(tmp_path) == cores


def test_no_quota_at_all(tmp_path):
    assert threads._cgroup_cores(tmp_path / "none") == NO_LIMIT


def test_a_quota_bounds_the_cores(monkeypatch):
    monkeypatch.delenv("DAGNN_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_cgroup_cores", lambda: 1)
    assert threads._default.__wrapped__() == 1
    monkeypatch.setattr(threads, "_cgroup_cores", lambda: NO_LIMIT)
    assert threads._default.__wrapped__() >= 1


# ---- errors, and threads of the user's own


def test_errors_of_helpers_come_out(set_threads):
    set_threads(3)
    caller, everybody = threading.get_ident(), threading.Barrier(3, timeout=30)

    def work(piece):
        if piece < 3:
            everybody.wait()  # so that each thread has one
            if threading.get_ident() != caller:
                raise KeyError(piece)
        return piece

    before = blas_threads()
    for _ in range(5):
        with pytest.raises(KeyError):
            threads.each(work, range(50))
        assert blas_threads() == before
        assert threads.each(lambda k: 2 * k, range(50)) == list(range(0, 100, 2)), (
            "as if nothing had happened"
        )


def test_nobody_goes_on_after_an_error(set_threads):
    set_threads(2)
    done = []

    def work(piece):
        if piece == 0:
            raise ValueError
        done.append(piece)

    with pytest.raises(ValueError):
        threads.each(work, range(100_000))
    assert len(done) < 100_000
    count = len(done)
    threads.each(lambda k: k, range(10))
    assert len(done) == count, "each returns when the last one has stopped"


def test_an_interruption_is_no_exception_to_that(set_threads):
    set_threads(2)
    before = blas_threads()

    def work(piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.each(work, range(10))
    assert blas_threads() == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
def test_interrupted_while_it_waits_each_leaves_nobody_at_work(set_threads):
    set_threads(2)
    everybody, left = threading.Barrier(2, timeout=30), []

    def interrupt(*_):
        raise KeyboardInterrupt

    def work(piece):
        everybody.wait()  # so that each thread has one
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3)
            left.append(piece)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            threads.each(work, range(2))
        assert len(left) == 1
    finally:
        signal.signal(signal.SIGALRM, before)


def test_errors_keep_no_memory_once_they_are_gone(set_threads):
    set_threads(2)
    array = np.empty(8)
    alive = weakref.ref(array)

    def work(piece, array=array):
        raise KeyError(array)

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(KeyError):
            threads.each(work, range(10))
        del array, work
        assert alive() is None
    finally:
        gc.enable()


def test_each_from_many_threads_at_once(set_threads):
    set_threads(2)
    with ThreadPoolExecutor(8) as users:
        found = list(users.map(lambda n: threads.each(lambda k: k * n, range(200)), range(40)))
    assert found == [[k * n for k in range(200)] for n in range(40)]


def test_nothing_to_do():
    assert threads.each(lambda piece: 1 / 0, []) == []
    assert threads.share([]) == []


# ---- the same results


@pytest.mark.parametrize("number", [1, 2, 3])
def test_results_are_the_same_bit_for_bit(set_threads, number):
    """Of all layers, forward and backward, whichever thread does which piece."""
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv((16, 8, 3, 3), pad=1), "x", "c")
    net.add_layer("bn", dagnn.BatchNorm(16), "c", "b")
    net.add_layer("relu", dagnn.ReLU(), "b", "r")
    net.add_layer("strided", dagnn.Conv((16, 16, 3, 3), stride=2, pad=1), "r", "s")
    net.add_layer("lrn", dagnn.LRN(), "s", "n")
    net.add_layer("pool", dagnn.Pooling(pool_size=3, stride=2), "n", "p")
    net.add_layer("avg", dagnn.Pooling(pool_size=3, stride=1, method="avg"), "p", "a")
    net.add_layer("up", dagnn.ConvTranspose((16, 4, 4, 4), upsample=2), "a", "u")
    net.add_layer("soft", dagnn.SoftMax(), "u", "y")
    net.init_params()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 8, 40, 40)).astype(np.float32)
    seed = rng.standard_normal(net.var_shapes({"x": x.shape})["y"]).astype(np.float32)

    def evaluate():
        y = net.eval({"x": x}, {"y": seed}, ders=["x"])["y"]
        return [y, net.vars["x"].der, *(param.der for param in net.params.values())]

    set_threads(number)
    first = evaluate()
    set_threads(4)
    other = evaluate()
    set_threads(number)
    for _ in range(8):
        assert all(np.array_equal(a, b) for a, b in zip(first, evaluate(), strict=True))
    for a, b in zip(first, other, strict=True):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-4 * abs(a).max()), "else by rounding only"


def test_helpers_ignore_the_errors_that_the_caller_ignores():
    with np.errstate(all="ignore"):
        threads.each(lambda k: np.float32(1e38) * np.float32(k * 1e38), range(64))
