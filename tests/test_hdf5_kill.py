"""Saving that dies in the middle leaves the file that was there."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dagnn

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

SAVER = """
import os, random, select, signal, sys
import dagnn, numpy as np

path, kills = sys.argv[1], int(sys.argv[2])
rng = random.Random(0)
generation = 0


def net_of(generation):
    net = dagnn.DagNN()
    conv = dagnn.Conv(size=(64, 64, 8, 8), has_bias=False)
    for k in range(8):
        net.add_layer(f"conv{k}", conv, f"x{k}", f"x{k + 1}", f"p{k}")
        net.params[f"p{k}"].value = np.full(conv.size, generation, np.float32)
    net.meta["generation"] = generation
    return net


def check():
    net = dagnn.load(path)
    assert {float(v) for p in net.params.values() for v in (p.value.min(), p.value.max())} == {
        net.meta["generation"]
    }
    return net.meta["generation"]


dagnn.save(net_of(0), path)
for _ in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        nets = [net_of(generation + k) for k in (1, 2)]
        os.write(write, b".")
        while True:
            for net in nets:
                dagnn.save(net, path)
    os.read(read, 1)
    select.select([], [], [], rng.uniform(0, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read), os.close(write)
    found = check()
    assert generation <= found <= generation + 2, (generation, found)
    generation = found
print(generation)
"""

FULL = """
import resource, signal, sys
import dagnn, numpy as np

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
net = dagnn.DagNN()
net.meta["large"] = np.zeros(int(sys.argv[2]))
try:
    dagnn.save(net, sys.argv[1])
except OSError as error:
    print(error.strerror)
"""


def python(script, *args):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(dagnn.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, args)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_killed_while_saving(tmp_path):
    path = tmp_path / "net.h5"
    done = python(SAVER, path, 30)
    assert done.returncode == 0, done.stderr
    left = [name for name in os.listdir(tmp_path) if name != "net.h5"]
    assert left  # kills did hit in the middle of saving
    assert all(name.startswith(".net.h5.") and name.endswith(".part") for name in left)
    assert list(tmp_path.glob("*.h5")) == [path]
    dagnn.save(dagnn.load(path), path)
    assert dagnn.load(path).meta["generation"] == int(done.stdout)
    assert len(os.listdir(tmp_path)) == len(left) + 1


@pytest.mark.parametrize("size", [10_000, 100_000, 1_000_000])
def test_full_disk(tmp_path, size):
    path = tmp_path / "net.h5"
    net = dagnn.DagNN()
    net.meta["old"] = np.arange(3)
    dagnn.save(net, path)
    before = path.read_bytes()
    done = python(FULL, path, size)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("File too large\n" if size > 10_000 else "")
    assert os.listdir(tmp_path) == ["net.h5"]
    assert (path.read_bytes() == before) == (size > 10_000)
