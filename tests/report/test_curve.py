import itertools
import json

import numpy as np
import pytest

from dnapretrain.errors import DataError
from dnapretrain.report.curve import NAME_HEIGHT, loss_curve, name_places
from dnapretrain.report.history import read_log
from dnapretrain.report.tables import markdown_table, short_count, summary_rows


def train(step, bits=1.9):
    return {"kind": "train", "step": step, "consumed_tokens": step * 1000, "consumed_bases": step * 1000, "bits_per_base": bits}


def evaluation(name, step, bits=1.95):
    return {"kind": "eval", "set": name, "step": step, "bits_per_base": bits}


def write(run_dir, records, tail=""):
    run_dir.mkdir(exist_ok=True)
    (run_dir / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return run_dir


def test_a_log_is_read_in_order_of_steps(tmp_path):
    start = {"kind": "start", "step": 0, "data_digest": "x"}
    history = read_log(
        write(tmp_path, [start, train(1), train(2), evaluation("b", 2), evaluation("a", 2), {"kind": "checkpoint", "step": 2}])
    )
    assert [record["step"] for record in history.train] == [1, 2]
    assert list(history.held_out) == ["b", "a"]
    assert history.start == start
    assert history.damaged_lines == 0


def test_the_last_record_of_a_step_counts(tmp_path):
    history = read_log(write(tmp_path, [train(1, 3.0), train(2, 3.0), evaluation("v", 2, 3.0), train(2, 1.5), evaluation("v", 2, 1.5)]))
    assert [record["bits_per_base"] for record in history.train] == [3.0, 1.5]
    assert [record["bits_per_base"] for record in history.held_out["v"]] == [1.5]


def test_a_resumed_run_drops_what_the_abandoned_one_logged_beyond(tmp_path):
    """Killed at step 6 after a checkpoint at 3, resumed, so far at step 4."""
    first = [{"kind": "start", "step": 0}, *(train(step, 3.0) for step in range(1, 7)), evaluation("v", 2, 3.0), evaluation("v", 6, 3.0)]
    history = read_log(write(tmp_path, [*first, {"kind": "start", "step": 3}, train(4, 1.5)]))
    assert [(record["step"], record["bits_per_base"]) for record in history.train] == [(1, 3.0), (2, 3.0), (3, 3.0), (4, 1.5)]
    assert [record["step"] for record in history.held_out["v"]] == [2]


def test_damaged_lines_are_counted(tmp_path):
    history = read_log(write(tmp_path, [train(1)], tail='{"kind": "tra\n[1, 2]\n'))
    assert (len(history.train), history.damaged_lines) == (1, 2)


def test_no_log_and_no_step_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"log\.jsonl is missing"):
        read_log(tmp_path)
    with pytest.raises(DataError, match="holds no training step"):
        read_log(write(tmp_path, [{"kind": "start", "step": 0}]))


@pytest.mark.parametrize("steps", [1, 2, 300])
@pytest.mark.parametrize("levels", [None, {"order 0": 2.0, "best count model": 1.94}])
def test_the_curve_is_drawn_from_one_step_on(tmp_path, steps, levels):
    from matplotlib.image import imread

    records = [train(step, 1.9 + 2 / step) for step in range(1, steps + 1)]
    run_dir = write(tmp_path / "run", [*records, evaluation("near", steps), evaluation("far", steps, 2.1)], tail="half a li")
    loss_curve(run_dir, tmp_path / "pictures" / "loss.png", levels)
    height, width, _ = imread(tmp_path / "pictures" / "loss.png").shape
    assert (width, height) == (1440, 800)
    pixels = imread(tmp_path / "pictures" / "loss.png")[..., :3]
    for color in ((0x1F, 0x5F, 0xA8), (0xD1, 0x49, 0x5B), (0x8F, 0x5F, 0xBF)):
        shade = np.array(color) / 255
        assert (np.abs(pixels - shade).max(axis=2) < 0.02).sum() > 20, color


@pytest.mark.parametrize(
    ("start", "unit"),
    [({}, "bits per base"), ({"model": {"kind": "decoder"}}, "bits per base"), ({"model": {"kind": "encoder"}}, "bits per masked base")],
)
def test_the_picture_says_what_it_shows(tmp_path, monkeypatch, start, unit):
    """The unit, the levels by name, and nothing broken by fields that the picture does not know."""
    from matplotlib.axes import Axes

    said = []
    for name in ("set_ylabel", "set_title", "annotate"):
        plain = getattr(Axes, name)
        monkeypatch.setattr(
            Axes, name, lambda axes, text, *rest, plain=plain, **style: (said.append(text), plain(axes, text, *rest, **style))[1]
        )
    records = [{"kind": "start", "step": 0, "config": start}, {**train(1), "accuracy": 0.3}, {**evaluation("v", 1), "accuracy": 0.4}]
    run_dir = write(tmp_path / "run", records)
    loss_curve(run_dir, tmp_path / "loss.png", {"count model, order 6": 1.94381, "count model, 4 flanks each side": 1.85})
    assert said == [
        unit,
        f"{unit.capitalize()} while training",
        "count model, 4 flanks each side: 1.850",
        "count model, order 6: 1.944",
        "uniform: 2 bits",
    ]


@pytest.mark.parametrize(
    "lines", [[], [50.0], [50.0, 55.0], [50.0, 50.0, 50.0], [0.0, 1.0], [298.0, 299.0, 300.0], [10.0, 14.0, 18.0, 22.0, 120.0, 126.0]]
)
def test_names_of_close_lines_do_not_meet(lines):
    places = name_places(lines, 300.0)
    assert len(places) == len(lines)
    assert all(upper - lower >= NAME_HEIGHT - 1e-9 for lower, upper in itertools.pairwise(places))
    assert all(NAME_HEIGHT / 2 <= place <= 300.0 - NAME_HEIGHT / 2 for place in places)


def test_names_stand_beside_their_lines():
    half = NAME_HEIGHT / 2
    assert name_places([50.0, 100.0], 300.0) == [50.0 + half, 100.0 + half]
    assert name_places([50.0, 55.0], 300.0) == [50.0 - half, 55.0 + half]


def test_markdown_table_aligns_numbers():
    table = markdown_table(
        [{"model": "ours", "bits per base": 1.92345, "tokens": 1234567}, {"model": "uniform", "bits per base": 2.0, "tokens": 0}]
    )
    assert table.splitlines() == [
        "| model   | bits per base |    tokens |",
        "|---------|--------------:|----------:|",
        "| ours    |        1.9235 | 1,234,567 |",
        "| uniform |        2.0000 |         0 |",
    ]
    assert markdown_table([]) == ""


def test_summary_rows_are_best_first():
    rows = summary_rows({"this model": 1.93}, {0: 2.0001, 6: 1.94})
    assert [row["model"] for row in rows] == ["this model", "count model, order 6", "uniform", "count model, order 0"]
    rows = summary_rows({"bert": 1.9}, {1: 1.96, 4: 1.85}, "count model, {} flanks each side")
    assert [row["model"] for row in rows] == ["count model, 4 flanks each side", "bert", "count model, 1 flanks each side", "uniform"]
    assert rows[0]["bits per base"] == 1.85


def test_short_counts():
    assert [short_count(value) for value in (0, 950, 12_500, 3_400_000, 1.2e9, 5e12)] == ["0", "950", "12.5 k", "3.4 M", "1.2 B", "5 T"]
