"""Pieces of convolutions on threads: the same results, and BLAS as it was afterwards."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import dagnn
from dagnn.backends.numpy import threads


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
    if threads.num_threads() > 1:
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
