import json

import numpy as np
import pytest

from dnapretrain.errors import DataError
from dnapretrain.report import loss_curve, markdown_table, read_log, short_count, summary_rows


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
@pytest.mark.parametrize("markov", [None, {0: 2.0, 6: 1.94}])
def test_the_curve_is_drawn_from_one_step_on(tmp_path, steps, markov):
    from matplotlib.image import imread

    records = [train(step, 1.9 + 2 / step) for step in range(1, steps + 1)]
    run_dir = write(tmp_path / "run", [*records, evaluation("near", steps), evaluation("far", steps, 2.1)], tail="half a li")
    loss_curve(run_dir, tmp_path / "pictures" / "loss.png", markov)
    height, width, _ = imread(tmp_path / "pictures" / "loss.png").shape
    assert (width, height) == (1440, 800)
    pixels = imread(tmp_path / "pictures" / "loss.png")[..., :3]
    for color in ((0x1F, 0x5F, 0xA8), (0xD1, 0x49, 0x5B), (0x8F, 0x5F, 0xBF)):
        shade = np.array(color) / 255
        assert (np.abs(pixels - shade).max(axis=2) < 0.02).sum() > 20, color


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


def test_short_counts():
    assert [short_count(value) for value in (0, 950, 12_500, 3_400_000, 1.2e9, 5e12)] == ["0", "950", "12.5 k", "3.4 M", "1.2 B", "5 T"]
