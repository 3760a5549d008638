"""Experiments from TOML files, and the commands that run them."""

import numpy as np
import pytest

import dagnn
from dagnn import cli
from dagnn.data import write_imdb
from dagnn.errors import FileFormatError, GraphError, OptionError
from dagnn.train.experiment import Experiment

NETS = """
import dagnn
from dagnn.data import Arrays
import numpy as np


def build(width=4):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(width, 1, 4, 4)), "input", "c")
    net.add_layer("relu", dagnn.ReLU(), "c", "r")
    net.add_layer("classify", dagnn.Conv(size=(2, width, 1, 1)), "r", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    return net


def make(number=60):
    label = np.arange(number) % 2
    x = np.zeros((number, 1, 4, 4), np.float32)
    x[label == 1] = 1
    return Arrays({"input": x, "label": label}, [1] * (number - 20) + [2] * 10 + [3] * 10)
"""
CONFIG = """
[network]
python = "nets.py:build"
width = 8
seed = 3

[data]
python = "nets.py:make"

[solver]
name = "Adam"

[training]
learning_rate = [0.05, 0.01]
batch_size = 10
num_epochs = 3
exp_dir = "out"
plots = []
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)

    def write(text=CONFIG):
        path = tmp_path / "experiment.toml"
        path.write_text(text)
        return path

    return write


def test_what_a_file_says(write):
    experiment = Experiment.load(write())
    assert experiment.net.layers["conv"].layer.size == (8, 1, 4, 4)
    assert len(experiment.data) == 60
    assert type(experiment.trainer.solver).__name__ == "Adam"
    assert (experiment.trainer.batch_size, experiment.trainer.learning_rate) == (10, [0.05, 0.01])
    again = Experiment.load(write())
    for name, param in experiment.net.params.items():
        np.testing.assert_array_equal(param.value, again.net.params[name].value)


def test_train_resume_evaluate(write, tmp_path, capsys):
    path = write()
    assert cli.main(["train", str(path)]) == 0
    assert (tmp_path / "out" / "net-epoch-3.h5").exists()
    assert cli.main(["train", str(path)]) == 1
    assert "Resume it with continue_=True (--continue)" in capsys.readouterr().err
    write(CONFIG.replace("num_epochs = 3", "num_epochs = 4"))
    assert cli.main(["train", str(path), "--continue"]) == 0
    assert "3 of 4 epochs are done" in capsys.readouterr().out
    assert cli.main(["evaluate", str(path), "--set", "test"]) == 0
    out = capsys.readouterr().out
    assert "net-epoch-4.h5, 10 samples of the set 'test'" in out and "objective" in out
    first = tmp_path / "out" / "net-epoch-1.h5"
    assert cli.main(["evaluate", str(path), "--net", str(first)]) == 0
    assert "net-epoch-1.h5, 10 samples of the set 'val'" in capsys.readouterr().out


def test_networks_from_the_zoo_and_from_files(write, tmp_path):
    zoo = CONFIG.replace('python = "nets.py:build"\nwidth = 8', 'zoo = "lenet"\nbatch_norm = true')
    net = Experiment.load(write(zoo)).net
    assert "bn1" in net.layers and net.params["conv1_filters"].value is not None
    net.save(tmp_path / "net.h5")
    file = CONFIG.replace('python = "nets.py:build"\nwidth = 8\nseed = 3', 'file = "net.h5"')
    loaded = Experiment.load(write(file)).net
    np.testing.assert_array_equal(loaded.params["conv1_filters"].value, net.params["conv1_filters"].value)


def test_functions_beside_the_file_may_bring_layers_and_modules(write, tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 5\n")
    layer = "from __future__ import annotations\nfrom dataclasses import dataclass\nimport beside\n"
    own = "\n\n@dataclass\nclass Own(dagnn.ReLU):\n    gain: float = 1.0\n"
    (tmp_path / "more_nets.py").write_text(layer + NETS.replace("width=4", "width=beside.WIDTH") + own)
    config = CONFIG.replace("nets.py:build", "more_nets.py:build").replace("width = 8", "")
    assert Experiment.load(write(config)).net.layers["conv"].layer.size == (5, 1, 4, 4)


def test_data_by_kind(write, tmp_path):
    images = np.arange(8 * 16, dtype=np.float32).reshape(8, 1, 4, 4)
    write_imdb(tmp_path / "imdb.h5", images, np.arange(8) % 2, [1] * 6 + [2] * 2)
    config = CONFIG.replace('python = "nets.py:make"', 'kind = "imdb"\npath = "imdb.h5"')
    data = Experiment.load(write(config)).data
    np.testing.assert_array_equal(data.batch([3])["input"], images[3:4])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[network]", "[netwerk]", r"no section \[netwerk\] is known. There are: network, data"),
        ('[data]\npython = "nets.py:make"', "", r"has no section \[data\]"),
        ("width = 8", "wdth = 8", r"\[network\] has no option 'wdth'. Did you mean 'width'"),
        ("batch_size", "batchsize", r"\[training\] has no option 'batchsize'. Did you mean 'batch_size'"),
        ("batch_size = 10", "batch_size = 0", "batch_size is a whole number from 1"),
        ('"Adam"', '"Adan"', "No solver 'Adan'. Did you mean 'Adam'"),
        ("nets.py:build", "nets.py:bild", "No function in nets.py 'bild'. Did you mean 'build'"),
        ("nets.py:build", "build", "file.py:function"),
        ("nets.py:build", "no_such_module:build", "No module named 'no_such_module'"),
        ("nets.py:build", "missing.py:build", "missing.py"),
        ('python = "nets.py:build"\nwidth = 8', 'zoo = "lenett"', "No zoo 'lenett'. Did you mean 'lenet'"),
        ('python = "nets.py:build"', "", r"\[network\] needs one of: zoo, file, python. Received: none"),
        ('python = "nets.py:make"', 'kind = "mnits"', "No kind of data 'mnits'. Did you mean 'mnist'"),
        ('python = "nets.py:make"', 'kind = "imdb"', r"\[data\] needs path"),
        ('"Adam"', '"Adam"\nmomentum = 0.9', r"\[solver\] has no option 'momentum'"),
        ("[solver]", "solver = 3\n[more]", "solver|more"),
    ],
)
def test_mistakes(write, old, new, message):
    with pytest.raises((OptionError, FileNotFoundError), match=message):
        Experiment.load(write(CONFIG.replace(old, new)))


@pytest.mark.parametrize("text", ["[network", b"\xff\xfe".decode("latin-1")])
def test_no_toml(write, text):
    with pytest.raises(FileFormatError, match="is no TOML file"):
        Experiment.load(write(text))


def test_parameters_of_another_network(write, tmp_path):
    experiment = Experiment.load(write())
    dagnn.zoo.lenet().save(tmp_path / "lenet.h5")
    with pytest.raises(GraphError, match="lenet.h5 .* another network"):
        experiment.restore(tmp_path / "lenet.h5")


def test_nothing_trained_yet(write, capsys):
    assert cli.main(["evaluate", str(write())]) == 1
    assert "There is no checkpoint in" in capsys.readouterr().err


def test_an_experiment_on_a_backend(write, capsys):
    section = '\n[backend]\nname = "reference"\n'
    assert Experiment.load(write(CONFIG + section)).net.backend.name == "reference"
    with pytest.raises(OptionError, match="Backend 'reference' has no options. Received: device"):
        Experiment.load(write(CONFIG + section + "device = 1\n"))
    with pytest.raises(OptionError, match=r"\[backend\] needs a name, such as \"cupy\". Received: None"):
        Experiment.load(write(CONFIG + "\n[backend]\ndevice = 1\n"))
    assert cli.main(["train", str(write(CONFIG + section)), "--backend", "numpy"]) == 0
    assert cli.main(["evaluate", str(write(CONFIG)), "--backend", "reference"]) == 0
    assert "samples of the set 'val'" in capsys.readouterr().out
