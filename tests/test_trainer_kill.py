"""A training killed at any moment and resumed ends as if it had never been interrupted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dagnn

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

SCRIPT = """
import os, random, select, signal, sys, time
from pathlib import Path
import dagnn, numpy as np
from dagnn.data import Arrays
from dagnn.train import Adam, fit

folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
label = rng.integers(3, size=240)
x = (rng.standard_normal((240, 1, 12, 12)) + label[:, None, None, None]).astype(np.float32)
data = Arrays({"x": x, "label": label}, [1] * 200 + [2] * 40).map(
    lambda batch, rng: batch if rng is None else batch | {"x": batch["x"][:, :, :: rng.choice([1, -1])]}
)


def train(folder):
    net = dagnn.DagNN()
    net.add_layer("conv1", dagnn.Conv(size=(8, 1, 3, 3), pad=1), "x", "c1")
    net.add_layer("bnorm", dagnn.BatchNorm(8), "c1", "b1")
    net.add_layer("relu", dagnn.ReLU(), "b1", "r1")
    net.add_layer("dropout", dagnn.DropOut(), "r1", "d1")
    net.add_layer("conv2", dagnn.Conv(size=(3, 8, 12, 12)), "d1", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.init_params(0)
    fit(
        net, data, solver=Adam(), batch_size=25, num_sub_batches=2, num_epochs=6, exp_dir=folder,
        continue_=True, keep_last=2, keep_best="val.objective", plots=(), progress=False,
    )


def result(folder):
    net = dagnn.load(folder / "net-epoch-6.h5")
    params = b"".join(param.value.tobytes() for param in net.params.values())
    files = sorted(path.name for path in folder.iterdir())
    return params, (folder / "stats.json").read_bytes(), (folder / "stats.csv").read_bytes(), files


train(folder / "first")  # with imports, and memory touched for the first time: none of which a fork repeats
begun = time.perf_counter()
train(folder / "straight")
duration = time.perf_counter() - begun
expected = result(folder / "straight")
moments = random.Random(seed)
interrupted = 0
for trial in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b".")
        train(folder / str(trial))
        os._exit(0)
    os.read(read, 1)
    select.select([], [], [], moments.uniform(0, duration))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read), os.close(write)
    interrupted += not (folder / str(trial) / "net-epoch-6.h5").exists()
    train(folder / str(trial))
    assert result(folder / str(trial)) == expected, f"trial {trial}"
print(interrupted)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_and_resumed(tmp_path, kills):
    environment = {**os.environ, "PYTHONPATH": str(Path(dagnn.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path), str(kills), str(kills)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= kills // 2
