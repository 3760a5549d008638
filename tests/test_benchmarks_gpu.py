"""Benchmarks of the GPU where there is none: on the emulator, with PyTorch on the CPU."""

import doctest
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_benchmarks import ROW

import dagnn
from benchmarks import nets, tables
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import agreement, check, layouts, rows, timing
from benchmarks.gpu.works import Setting
from dagnn.errors import BackendError

needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="needs PyTorch: pip install dagnn[bench]")
TIMES = {"dagnn": [1.0, 2.0, 3.0], "nchw": [4.0, 4.0, 4.0], "nhwc": [3.0, 3.0, 3.0]}
ERRORS = {"dagnn": 1e-6, "pytorch": 2e-6}


def small_net():
    """PyTorch's CPU has no LRN in bfloat16."""
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(4, 3, 3, 3), pad=1), "input", "c1")
    net.add_layer("relu", dagnn.ReLU(), "c1", "r1")
    net.add_layer("pool", dagnn.Pooling(pool_size=2, stride=2), "r1", "p1")
    net.add_layer("drop", dagnn.DropOut(), "p1", "d1")
    net.add_layer("fc", dagnn.Conv(size=(5, 4, 4, 4)), "d1", "prediction")
    net.add_layer("loss", dagnn.Loss(), ["prediction", "label"], "objective")
    return net


CASE = nets.Case(small_net, (3, 3, 8, 8), num_classes=5)


@pytest.fixture(autouse=True)
def _few_turns(monkeypatch):
    monkeypatch.setattr(timing, "TURN", 0)
    monkeypatch.setattr(timing, "LEAST", 2)


@pytest.fixture
def backends(emulated):
    return lambda precision: emulated


def some_rows(**changes):
    peaks = dict.fromkeys(("dagnn", "nchw", "nhwc", "compiled"), 100.0)
    setting = Setting("train", "tf32", capture=True)
    return rows.rows("lenet", nets.CASES["lenet"].at(batch=4), setting, TIMES | changes, peaks, ERRORS)


@pytest.mark.parametrize("module", [layouts, command])
def test_examples(module):
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_rows_are_those_of_the_cpu_and_say_how():
    (row,) = some_rows()
    assert set(ROW) <= row.keys()
    assert (row["precision"], row["capture"], row["peer_layout"], row["ratio"]) == ("tf32", True, "nhwc", 1.5)
    assert (row["ours_images_s"], row["other_layout_ms"]) == (2000, 4)
    both = some_rows(compiled=[1.0, 1.0, 1.0])
    assert [(row["peer"], row["ratio"]) for row in both] == [("pytorch", 1.5), ("torch.compile", 0.5)]
    assert (
        "train in tf32 with CUDA graphs against torch.compile: geometric mean 0.50, least 0.50 (lenet"
        in (rows.means(both)[1])
    )
    lines = [rows.HEADER, rows.line(row)]
    assert [line.split()[:4] for line in lines] == [
        ["net", "phase", "batch", "precision"],
        ["lenet", "train", "4", "tf32"],
    ]
    assert len(lines[0]) == len(lines[1])


def test_tables_of_gpu_figures():
    facts = {"device": "a GPU", "device_memory_gb": 141.0, "driver_cuda": 13000, "runtime_cuda": 13000}
    facts["device_packages"] = {"cupy-cuda13x": "14.2.0"}
    figures = {"machine": {**command.machine(1), **facts}, "rows": some_rows()}
    text = tables.markdown(json.loads(json.dumps(figures)))
    assert "### Networks on a GPU\n\nMeasured on 20" in text and "on a GPU with 141.0 GB" in text
    assert (
        "| lenet | train | tf32, CUDA graphs | PyTorch | 4 | 2 ± 1 | 3 ± 0 | 1.50 | 2000 | 100 | 100 |"
        in text
    )


def test_turns(emulated):
    calls = []
    works = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = timing.turns(works, 0, timing.Clock(emulated.xp), least=4)
    assert [len(of) for of in times.values()] == [4, 4]
    first, last = calls.index("b"), len(calls) - 1 - calls[::-1].index("a")
    assert calls[:4] == list("aaaa") and first == 4 and calls[-1] == "a" and last == len(calls) - 1


def test_memory_of_a_program(emulated):
    made = []

    def make():
        made.append(emulated.zeros((1000, 1000), "float32"))
        return lambda: made.append(None)

    _, megabytes = timing.with_memory(emulated.xp, make)
    assert 4 <= megabytes < 4.1
    assert made[1:] == [None] * 3


@needs_torch
@pytest.mark.parametrize("phase", ["infer", "train"])
@pytest.mark.parametrize("precision, capture", [("float32", False), ("float32", True), ("bfloat16", False)])
def test_a_network_is_compared_and_measured(backends, phase, precision, capture):
    setting = Setting(phase, precision, capture)
    found = rows.measure("small", CASE, setting, backends, 0, device="cpu")
    assert [row["peer"] for row in found if row["peer"] != "torch.compile"] == ["pytorch"]
    assert found[0]["ours_error"] < {"float32": 1e-5, "bfloat16": 0.1}[precision]
    assert found[0]["ratio"] == pytest.approx(found[0]["peer_ms"] / found[0]["ours_ms"])
    assert rows.line(found[0]).split()[0] == "small"


@needs_torch
def test_a_wrong_kernel_is_found(emulated, backends, monkeypatch):
    right = type(emulated).conv_dzdw
    monkeypatch.setattr(type(emulated), "conv_dzdw", lambda *a, **options: 1.001 * right(*a, **options))
    agreement._double_errors.cache_clear()
    result = check._agrees(CASE, Setting("train"), backends, "cpu")
    agreement._double_errors.cache_clear()
    assert result.good is False and "conv_filters in float64" in result.text


def test_layouts_are_compared(backends):
    conv = nets.Convolution((2, 4, 6, 6), (5, 4, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    both = dict.fromkeys(("nchw", "nhwc"), backends("float32"))
    found = list(layouts.measure({conv: ["a:1", "b:2"]}, "float32", both, 0))
    assert [row["kind"] for row in found] == list(layouts.KINDS)
    assert all("2x4x6x6 * 5x4x3x3 pad 1" in layouts.line(row) for row in found)
    sums = layouts.sums(found)
    assert len(sums) == 4 and sums[1].split()[:2] == ["float32", "all"]
    backend = backends("float32")
    for layout, order in ("nchw", (0, 1, 2, 3)), ("nhwc", (0, 2, 3, 1)):
        made = layouts.arrays(conv, "float32", layout, backend)
        assert all(array.transpose(order).flags.c_contiguous for array in made.values())
    of = [layouts.works(conv, "float32", layout, backend) for layout in ("nchw", "nhwc")]
    for kind in layouts.KINDS:
        a, b = (backend.to_numpy(work[kind]()) for work in of)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# The check.


def test_parts_go_on_after_one_that_fails(tmp_path, capsys):
    def fails(_):
        raise ValueError("no")

    parts = [
        ("first", lambda left: check.Result("", True, f"{left > 0}")),
        ("second", fails),
        ("third", lambda _: check.Result("", None, "nothing to see")),
    ]
    report = check.Report(tmp_path)
    assert check.run(report, parts, seconds=60) == report.code == 1
    text = (tmp_path / "summary.txt").read_text()
    assert text == capsys.readouterr().out
    assert "FAIL second" in text and "ValueError: no" in text
    assert text.endswith("1 of 3 parts are good; failed: second; not run: third\n")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [part["good"] for part in summary] == [True, False, None]
    assert check.run(check.Report(tmp_path), parts[:1], seconds=-1) == 2
    assert check.run(check.Report(tmp_path), parts[:1], seconds=60) == 0


def test_golden_errors_are_held_against_their_bars(tmp_path):
    path = tmp_path / "golden.json"
    assert check.golden(path).good is None
    path.write_text(json.dumps({"float32": [9e-6, "a"], "float64": [1e-12, "b"], "float16": [1, "c"]}))
    assert check.golden(path).good is True
    assert "float32: largest error 9e-06 of 1e-05 (a)" in check.golden(path).text
    path.write_text(json.dumps({"float32": [9e-6, "a"], "float64": [1e-8, "b"]}))
    assert check.golden(path).good is False


def test_the_report_of_the_tests_is_read(tmp_path):
    xml = tmp_path / "tests.xml"
    xml.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.test_a" name="one"/>'
        '<testcase classname="tests.test_a" name="two"><failure message="assert 1 == 2&#10;more"/></testcase>'
        '<testcase classname="tests.test_b" name="three"><skipped message="no device"/></testcase>'
        "</testsuite></testsuites>"
    )
    result = check.tests_result(xml)
    assert result.good is False
    assert result.text.splitlines() == [
        *("1 passed, 1 failed, 1 skipped", "failed test_a::two: assert 1 == 2", "skipped: no device")
    ]
    assert result.details["skipped"] == ["test_b::three: no device"]


@needs_torch
def test_a_whole_check(backends, tmp_path, monkeypatch):
    """On the emulator: the machine, a test that uses it, and one network."""
    monkeypatch.setattr(check, "ON_GPU", {})
    file = Path(__file__).with_name("test_devices.py")
    parts = check.parts(
        tmp_path, backends, {"small": CASE}, [Setting("infer")], [f"{file}::test_a_limit_is_told"], "cpu"
    )
    report = check.Report(tmp_path)
    assert check.run(report, parts, seconds=600) == 2, report.results  # no golden test among those
    good = {result.name: result.good for result in report.results}
    assert list(good) == ["machine", "tests on the device", "golden numbers", "small infer float32"]
    assert list(good.values()) == [True, True, None, True]
    assert "1 passed" in (tmp_path / "pytest.txt").read_text()


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(dagnn.backends, "get", lambda *_, **__: _no_device())
    assert command.main(["--check", "--out", str(tmp_path / "out")]) == command.NO_GPU == command.main([])
    assert capsys.readouterr().out == 2 * "There is no GPU, nothing was run: no device\n"
    assert "nothing was run: no device" in (tmp_path / "out" / "summary.txt").read_text()


@needs_torch
def test_the_command_measures_what_there_is_time_for(backends, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(nets.CASES, "small", CASE)
    monkeypatch.setattr(command, "backend_of", lambda precision, *_, **__: backends(precision))
    monkeypatch.setattr(rows.measure, "__defaults__", ("cpu", False))
    options = ["--nets", "small", "--phase", "infer", "--precision", "float32", "--batches", "1,2"]
    file, page = tmp_path / "figures.json", tmp_path / "page.md"
    assert command.main([*options, "--capture", "both", "--seconds", "0", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    settings = [(row["batch"], row["capture"]) for row in found["rows"]]
    assert settings == [(1, False), (1, True), (2, False), (2, True)]
    assert found["machine"]["device"] == "an emulated device"
    page.write_text("## Figures\n\nof a CPU\n")
    monkeypatch.setattr(sys, "argv", ["tables", str(file), "--into", str(page)])
    tables.main()
    assert page.read_text().startswith(
        "## Figures\n\nof a CPU\n\n## Figures on a GPU\n\n### Networks on a GPU"
    )
    assert "infer in float32 against pytorch: geometric mean" in capsys.readouterr().out
    assert command.main([*options, "--minutes", "1e-9"]) == 1
    assert capsys.readouterr().out.count("not measured, time is up") == 2
    options += ["--batches", "1", "--seconds", "0", "--json", str(file)]
    assert command.main(["--layouts", *options]) == 0
    assert "better: " in capsys.readouterr().out
    assert "| 1x3x8x8 \\* 4x3x3x3 pad 1 | float32 | dzdw |" in tables.markdown(json.loads(file.read_text()))


def test_the_check_is_imported_without_pytorch():
    code = "import sys; sys.modules['torch'] = None; import benchmarks.gpu.check, benchmarks.gpu.rows"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=check.ROOT)


def test_without_pytorch_it_says_so(backends, monkeypatch, capsys):
    monkeypatch.setattr(command, "backend_of", lambda precision, *_, **__: backends(precision))
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command.main(["--check"])
    assert "PyTorch is missing: pip install 'dagnn[bench]'" in capsys.readouterr().err


def _no_device():
    raise BackendError("no device")


def test_options_are_checked(capsys):
    for wrong in (
        ["--device", "-1"],
        ["--batches", "0"],
        ["--nets", "mynet"],
        ["--precision", "int8"],
        ["--check", "--layouts"],
    ):
        with pytest.raises(SystemExit):
            command.main(wrong)
    assert "whole numbers from 1. Received: '0'" in capsys.readouterr().err
