"""Statistics of training: stats.json and stats.csv, the line of an epoch, TensorBoard's events."""

import csv
import json
import math
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnn.errors import FileFormatError, MissingPackageError, OptionError
from dagnn.train.stats import epoch_line, read_stats, short, value_of, write_stats
from dagnn.train.tensorboard import TensorBoard

NAN, INF = math.nan, math.inf
HISTORY = [
    {"train": {"objective": 1 / 3, "top1err": 0.1}},
    {"train": {"objective": 5e-324}, "val": {"objective": -1.7976931348623157e308}},
    {"train": {"objective": 0.1 + 0.2, 'new, "quoted"': 7.0}, "val": {"objective": INF, "top1err": -INF}},
    {"train": {}},
]


# ---- files


@given(
    st.lists(
        st.fixed_dictionaries(
            {"train": st.dictionaries(st.text(), st.floats())},
            optional={"val": st.dictionaries(st.text(), st.floats())},
        )
    )
)
def test_json_is_read_back_exactly(tmp_path_factory, history):
    folder = tmp_path_factory.mktemp("stats")
    write_stats(folder, history)
    assert repr(read_stats(folder / "stats.json")) == repr(history)


def test_json_is_strict_and_numbers_its_epochs(tmp_path):
    def refuse(word):
        raise AssertionError(word)

    write_stats(tmp_path, HISTORY + [{"train": {"objective": NAN}}])
    epochs = json.loads((tmp_path / "stats.json").read_text(), parse_constant=refuse)["epochs"]
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3, 4, 5]
    assert epochs[0] == {"epoch": 1, **HISTORY[0]}
    assert epochs[2]["val"] == {"objective": "Infinity", "top1err": "-Infinity"}
    assert epochs[4]["train"] == {"objective": "NaN"}


def test_csv_has_every_column_and_all_digits(tmp_path):
    write_stats(tmp_path, HISTORY)
    with open(tmp_path / "stats.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("epoch", "train.objective", "train.top1err", 'train.new, "quoted"', "val.objective", "val.top1err")
    ]
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for row, stats in zip(rows, HISTORY, strict=True):
        given = {f"{part}.{name}": value for part, values in stats.items() for name, value in values.items()}
        assert {name: float(text) for name, text in row.items() if text and name != "epoch"} == given


def test_no_epoch_yet(tmp_path):
    write_stats(tmp_path, [])
    assert read_stats(tmp_path / "stats.json") == []
    assert (tmp_path / "stats.csv").read_text() == "epoch\n"


def test_files_stay_whole_when_writing_fails(tmp_path, monkeypatch):
    write_stats(tmp_path, HISTORY)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_stats(tmp_path, HISTORY[:1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", 'no list "epochs"'),
        (b'{"epochs": {}}', 'no list "epochs"'),
        (b'{"epochs": [3]}', "epoch 1 is missing"),
        (b'{"epochs": [{"train": {}}]}', "epoch 1 is missing"),
        (b'{"epochs": [{"epoch": 1}, {"epoch": 3}]}', "epoch 2 is missing"),
        (b'{"epochs": [{"epoch": 1, "train": 3}]}', "'train' should have statistics"),
        (
            b'{"epochs": [{"epoch": 1, "train": {"a": null}}]}',
            "epoch 1: train.a is no number. Received: None",
        ),
        (b'{"epochs": [{"epoch": 1, "train": {"a": true}}]}', "train.a is no number"),
        (b'{"epochs": [{"epoch": 1, "train": {"a": "x"}}]}', "train.a is no number. Received: 'x'"),
        (b'{"epochs": [{"epoch": 1, "train": {"a": 1' + b"0" * 5000 + b"}}]}", "train.a is no number"),
        (b'{"epochs": [{"epoch": 1, "train": {"a": NaN}}]}', "has the number NaN"),
    ],
)
def test_damaged_json(tmp_path, content, message):
    path = tmp_path / "stats.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_stats(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_truncated_json(tmp_path):
    write_stats(tmp_path, HISTORY)
    path = tmp_path / "stats.json"
    content = path.read_bytes().rstrip()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError):
            read_stats(path)


# ---- lines


def test_the_line_of_an_epoch():
    stats = {"train": {"objective": 0.31124, "top1err": 0.08123}, "val": {"objective": 0.4013}}
    line = "epoch  3/20  train objective 0.3112  top1err 0.0812 | val objective 0.4013"
    assert epoch_line(3, 20, stats) == line
    assert epoch_line(3, 20, stats, speed=1233.6) == line + " | 1234 samples/s"
    assert epoch_line(3, 20, stats, speed=0.25).endswith(" | 0.2 samples/s")


@given(
    st.floats(-1e99, 1e99).filter(lambda value: value == 0 or abs(value) > 1e-99)
    | st.sampled_from([NAN, INF])
)
def test_values_are_short_and_right(value):
    text = short(value)
    assert len(text) <= 7 + (value < 0)
    assert float(text) == pytest.approx(value, rel=0.051, nan_ok=True)


@given(st.integers(1, 100), st.floats(0.001, 99999))
def test_lines_align(epoch, value):
    usual = epoch_line(1, 100, {"train": {"objective": 1.0}, "val": {"objective": 1.0}})
    other = epoch_line(epoch, 100, {"train": {"objective": value}, "val": {"objective": NAN}})
    assert len(other) == len(usual) and other.index("|") == usual.index("|")


def test_the_value_of_a_statistic():
    stats = {"train": {"objective": 1.0}, "val": {"objective": 2.0, "a.b": 3.0}}
    assert [value_of(stats, name) for name in ("train.objective", "val.a.b")] == [1.0, 3.0]
    for name in ("objective", "val.top1err", "test.objective", ""):
        with pytest.raises(OptionError, match=r"There are: train.objective, val.objective, val.a.b"):
            value_of(stats, name)
    with pytest.raises(OptionError, match="There are: none"):
        value_of({"train": {}}, "train.objective")


# ---- TensorBoard


def events(path):
    """The events in a file of TFRecords: length, its checksum, bytes, their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, start, found = path.read_bytes(), 0, []
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        event = Event()
        event.ParseFromString(content[start + 12 : start + 12 + length])
        found.append(event)
        start += 16 + length
    assert start == len(content)
    return found


def shown(folder: Path):
    """{(tag, epoch): value}, as TensorBoard puts them together: a restart hides that epoch and later ones."""
    result = {}
    for path in sorted(folder.iterdir()):
        for event in events(path):
            if event.HasField("session_log"):
                assert event.session_log.status == event.session_log.START
                result = {key: value for key, value in result.items() if key[1] < event.step}
            for value in event.summary.value:
                result[value.tag, event.step] = value.simple_value
    return result


def test_events_are_written(tmp_path):
    with TensorBoard(tmp_path / "new" / "folder") as board:
        board.write(1, {"train": {"objective": 0.5, "top1err": 0.25}, "val": {"objective": 0.75}})
        board.write(2, {"train": {"objective": 0.125}})
    assert shown(tmp_path / "new" / "folder") == {
        ("objective/train", 1): 0.5,
        ("top1err/train", 1): 0.25,
        ("objective/val", 1): 0.75,
        ("objective/train", 2): 0.125,
    }


def test_values_that_are_not_finite_are_events_too(tmp_path):
    with TensorBoard(tmp_path) as board:
        board.write(1, {"val": {"a": NAN, "b": -INF}})
    values = shown(tmp_path)
    assert math.isnan(values["a/val", 1]) and values["b/val", 1] == -INF


def test_resuming_hides_what_came_after(tmp_path):
    for first, value in ((1, 0.5), (3, 0.25), (3, 0.125)):
        with TensorBoard(tmp_path, first) as board:
            for epoch in range(first, first + 3):
                board.write(epoch, {"train": {"objective": value}})
    assert len(list(tmp_path.iterdir())) == 3
    assert {epoch: value for (_, epoch), value in shown(tmp_path).items()} == {
        1: 0.5,
        2: 0.5,
        3: 0.125,
        4: 0.125,
        5: 0.125,
    }


def test_closing_twice(tmp_path):
    board = TensorBoard(tmp_path)
    board.close()
    board.close()


def test_tensorboardx_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'dagnn\[tensorboard\]'"):
        TensorBoard(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
