"""What the benchmarks measure with, on small things; peers that are missing are skipped."""

import doctest
import json
import mmap
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import dagnn
from benchmarks import faults, measure, nets, scaling, tables
from dagnn.backends import numpy as kernels

needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="needs PyTorch: pip install dagnn[bench]")
needs_onnx = pytest.mark.skipif(
    not (find_spec("onnxruntime") and find_spec("onnx")), reason="needs ONNX: pip install dagnn[bench]"
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
ROW = {
    "net": "lenet",
    "phase": "train",
    "batch": 100,
    "peer": "pytorch",
    "rounds": 9,
    "others": 0.0,
    "ours_ms": 10.0,
    "peer_ms": 20.0,
    "ratio": 2.0,
    "ours_peak_mb": 30.5,
    "peer_peak_mb": 61.0,
    "ours_spread_ms": 0.1,
    "peer_spread_ms": 0.2,
}


def small_net():
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(4, 3, 3, 3), pad=1), "input", "c1")
    net.add_layer("bn", dagnn.BatchNorm(4), "c1", "b1")
    net.add_layer("relu", dagnn.ReLU(), "b1", "r1")
    net.add_layer("pool", dagnn.Pooling(pool_size=3, stride=2, pad=(0, 1, 0, 1)), "r1", "p1")
    net.add_layer("lrn", dagnn.LRN((5, 1, 1e-4 / 5, 0.75)), "p1", "n1")
    net.add_layer("side", dagnn.Conv(size=(4, 2, 1, 1)), "n1", "s1")
    net.add_layer("join", dagnn.Concat(), ["n1", "s1"], "j1")
    net.add_layer("sum", dagnn.Sum(), ["j1", "j1"], "t1")
    net.add_layer("drop", dagnn.DropOut(), "t1", "d1")
    net.add_layer("fc", dagnn.Conv(size=(5, 8, 4, 4)), "d1", "prediction")
    net.add_layer("loss", dagnn.Loss(), ["prediction", "label"], "objective")
    return net


CASE = nets.Case(small_net, (3, 3, 8, 8), num_classes=5)


@pytest.mark.parametrize("module", [faults, measure, scaling, tables])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_rounds_take_turns(monkeypatch):
    monkeypatch.setattr(measure, "TURN", 0)
    calls = []
    works = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = measure.interleaved(works, seconds=0, pause=0, least=4)
    assert [len(of) for of in times.values()] == [4, 4, 4]
    assert calls[:6] == list("aabbcc"), "warming up"
    assert calls[6:] == list("abcbcacababc")
    assert measure.best({"a": [3, 1, 3], "b": [2, 2, 2]}, "ab") == "b"


def test_short_rounds_follow_each_other(monkeypatch):
    monkeypatch.setattr(measure, "TURN", 3600)
    calls = []
    times = measure.interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0, 0, least=1
    )
    assert "".join(calls) == "aabb" + "a" * 20 + "b" * 20
    assert [len(of) for of in times.values()] == [19, 19], "the first of a turn doesn't count"


@needs_proc
def test_peak_memory_is_what_was_used():
    measure.forget_peak()
    before = measure.resident_mb()
    array = np.ones(10_000_000)
    assert 70 < measure.resident_mb("VmHWM") - before < 120
    del array
    measure.forget_peak()
    assert measure.resident_mb("VmHWM") - before < 40


@needs_proc
def test_others_are_seen():
    others = measure.Others()
    busy = "import time\nend = time.perf_counter() + 0.5\nwhile time.perf_counter() < end: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert 0 <= others.share <= 1


def test_the_machine_in_words(tmp_path):
    facts = measure.machine(2)
    assert facts["threads"] == 2
    assert facts["versions"]["numpy"] == np.__version__
    assert "blas" in facts["blas"].lower() or facts["blas"] == "unknown"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some CPU\ncpu family\t: 25\nmodel\t: 17\nflags\t: sse avx avx2\n\nx: 1")
    assert measure.processor(cpuinfo) == "Some CPU, family 25, model 17, AVX2"
    assert measure.processor(tmp_path / "none")


def test_nothing_unknown_is_measured():
    assert measure.choose("b,a", "abc", pytest.fail) == ["b", "a"]
    messages = []
    measure.choose("a,x", "abc", messages.append)
    assert messages == ["unknown: x; there are a, b, c"]


def test_convolutions_of_the_zoo():
    found = nets.convolutions(["lenet", "dncnn", "alexnet", "vgg-f"])
    texts = {str(conv): layers for conv, layers in found.items()}
    assert texts["16x96x27x27 * 256x48x5x5 pad 2 groups 2"] == ["alexnet:conv2"]
    assert len(texts["1x64x256x256 * 64x64x3x3 pad 1"]) == 15
    assert sum(conv.fully_connected for conv in found) > 3
    for conv in found:
        assert conv.first == (conv.x[1] in (1, 3))
    conv = next(conv for conv in found if str(conv) == "100x20x12x12 * 50x20x5x5")
    assert conv.operations == 2 * 100 * 50 * 8 * 8 * 20 * 25
    assert conv.output == (100, 50, 8, 8)


def test_cases_change_size():
    case = nets.CASES["dncnn"].at(batch=2, size=16)
    assert case.inputs()["label"].shape == (2, 1, 16, 16)
    assert nets.CASES["lenet"].at(batch=3).inputs()["label"].shape == (3,)


def test_faults_are_counted():
    maps = []

    def touch():
        """A megabyte straight from the system: too small for huge pages, of which one fault brings many."""
        maps.append(mmap.mmap(-1, 1 << 20))
        for page in range(0, 1 << 20, mmap.PAGESIZE):
            maps[-1][page] = 1

    counts = faults.counted(touch, 4)
    assert len(counts) == 4
    assert min(counts) >= (1 << 20) // mmap.PAGESIZE
    found = faults.row("lenet", "infer", [100, 50, 1, 2, 3])
    assert (found["first"], found["steady"], found["share"]) == (100, 2, 0.02)
    assert "NOT under 1%" in faults.line(found)


def test_scipy_filters_alike():
    pytest.importorskip("scipy")
    rows = list(scaling.window_sweep(0, windows=(3, 5), image=32))
    assert [(row["net"], row["value"]) for row in rows] == [
        *(("filter", 3), ("filter", 5)),
        *(("maximum", 3), ("maximum", 5)),
    ]
    assert all(row["way"].split(".")[0] in ("ndimage", "signal") for row in rows)


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"sweep": "batch", "net": net, "phase": "infer", "value": n, **scaling.row("pytorch", [n], [2 * n])}
        for net in ("a", "b")
        for n in (1, 2, 4)
    ]
    scaling.plot(rows, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_tables_of_networks():
    figures = {"machine": measure.machine(2), "rows": [ROW, ROW | {"net": "dncnn", "ratio": 0.5}]}
    text = tables.markdown(json.loads(json.dumps(figures)))
    assert text.startswith("### Whole networks\n\nMeasured on 20")
    assert "| lenet | 100 | 10 ± 0.1 | 20 ± 0.2 | 2.00 | 30.5 | 61 |" in text
    assert "| geometric mean |  |  |  | 1.00 |  |  |" in text
    both = [ROW | {"phase": "infer", "peer": peer} for peer in ("pytorch", "onnxruntime")]
    head, _, line, mean = tables.networks(both).splitlines()
    assert {len(part.split("|")) for part in (head, line, mean)} == {12}
    assert "MB" not in tables.networks([ROW | {"ours_peak_mb": None, "peer_peak_mb": None}])


def test_figures_are_put_into_a_page(monkeypatch, tmp_path):
    page, file = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text("# Speed\n\nText.\n")
    for ratio in (2.0, 3.0):
        measure.write_json(file, 2, [ROW | {"ratio": ratio}])
        monkeypatch.setattr(sys, "argv", ["tables", str(file), "--into", str(page)])
        tables.main()
        assert page.read_text().startswith("# Speed\n\nText.\n\n## Figures\n\n### Whole networks\n")
        assert page.read_text().count("Measured on") == 1
        assert f"| {ratio:.2f} |" in page.read_text()


def test_figures_of_a_gpu_have_a_section_of_their_own():
    page = tables.placed("# Speed\n", "cpu")
    for figures in ("old", "gpu"):
        page = tables.placed(page, figures, "Figures on a GPU")
    assert page == "# Speed\n\n## Figures\n\ncpu\n\n## Figures on a GPU\n\ngpu\n"
    assert tables.placed(page, "new") == page.replace("cpu", "new")


def test_tables_of_the_others():
    machine = measure.machine(2)
    rows = [
        scaling.row("scipy", [1.0], [2.0]) | {"sweep": "window", "net": "f", "phase": "infer", "value": 3}
    ]
    for figures in (rows, [faults.row("lenet", "infer", [100, 50, 1, 2, 3])]):
        lines = tables.markdown({"machine": machine, "rows": figures}).splitlines()
        assert lines[4].count("|") == lines[6].count("|") > 5
    with pytest.raises(SystemExit):
        tables.markdown({"machine": machine, "rows": []})


@needs_torch
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pytorch_makes_a_step(layout):
    from benchmarks import works

    infer = works.pytorch(CASE, "infer", layout, 1)
    assert measure.error(works.ours(CASE, "infer")(), infer()) < 1e-5
    works.pytorch(CASE, "train", layout, 1)()
    works.ours(CASE, "train")()


@needs_torch
@needs_onnx
def test_all_agree(monkeypatch):
    from benchmarks import agreement

    for phase, peers in (("infer", {"pytorch", "onnxruntime"}), ("train", {"pytorch"})):
        errors = agreement.check(CASE, phase, 1)
        assert errors.keys() == {"dagnn"} | peers
        assert max(errors.values()) < 1e-3
    wrong = type(kernels.backend).conv_dzdw
    monkeypatch.setattr(
        type(kernels.backend), "conv_dzdw", lambda *args, **options: 1.001 * wrong(*args, **options)
    )
    with pytest.raises(agreement.Disagreement, match="derivative of conv_filters in float64"):
        agreement.check(CASE, "train", 1)


@needs_torch
def test_every_kernel_has_a_peer():
    from benchmarks import convolutions

    grouped = nets.Convolution((2, 4, 9, 9), (6, 2, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1))
    whole = nets.Convolution((2, 4, 3, 3), (6, 4, 3, 3), (1, 1), (0, 0, 0, 0), (1, 1))
    for conv, layouts in ((grouped, {"nchw", "nhwc"}), (whole, {"nchw", "nhwc", "linear"})):
        assert conv.fully_connected == ("linear" in layouts)
        for kind in convolutions.KINDS:
            row = convolutions.measure(conv, kind, 0)
            assert row["peer_layout"] in layouts
            assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
            assert kind in convolutions.line(row)
            data = convolutions.arrays(conv)
            answers = [
                convolutions.pytorch(conv, kind, data, layout)().flatten() for layout in sorted(layouts)
            ]
            for answer in answers:
                assert measure.error(answer, answers[0]) < 1e-5


@needs_torch
@needs_onnx
@needs_proc
def test_a_whole_benchmark(monkeypatch, capsys, tmp_path):
    from benchmarks import cpu

    monkeypatch.setitem(nets.CASES, "small", CASE)
    monkeypatch.setattr(
        sys, "argv", f"cpu --nets small --seconds 0 --no-memory --json {tmp_path}/f.json".split()
    )
    try:
        cpu.main()
    finally:
        dagnn.set_num_threads(None)
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert [(row["phase"], row["peer"]) for row in rows] == [
        *(("infer", "pytorch"), ("infer", "onnxruntime"), ("train", "pytorch"))
    ]
    names = ["net", "phase", "batch", "peer", "ours_ms", "peer_ms", "ratio", "ours_peak_mb", "peer_peak_mb"]
    assert set(names) <= rows[0].keys()
    assert rows[0]["ratio"] == pytest.approx(rows[0]["peer_ms"] / rows[0]["ours_ms"])
    assert "train against pytorch: geometric mean" in capsys.readouterr().out


@needs_proc
def test_memory_in_a_process_of_its_own():
    root = Path(measure.__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.memory", "lenet", "train", "dagnn", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=os.environ)
    assert 10 < float(done.stdout) < 300
