"""The formulas behind the log."""

from __future__ import annotations

import math

import pytest

from dnapretrain.config_file import config_from_dict
from dnapretrain.model.counts import flops_per_token
from dnapretrain.report.history import read_log
from dnapretrain.train.metrics import RunLog, bits_per_base, peak_of_rank


def test_uniform_over_bases_reads_two_bits():
    assert bits_per_base(math.log(4), 1) == pytest.approx(2.0)
    assert bits_per_base(math.log(4096), 6) == pytest.approx(2.0)


def test_flops_equal_a_count_over_the_real_matrices(tiny_config, ranks):
    from model.test_build import named_shapes

    config = config_from_dict(tiny_config())
    weights = ranks.run(1, named_shapes, tree=tiny_config())[0]
    matrices = sum(tensor.numel() for name, tensor in weights.items() if tensor.dim() == 2 and "word_embeddings" not in name)
    S, width = 32, 64
    attention = sum(2 * 2 * width * S / 2 for _ in range(4))  # q k^T and probabilities x v, half of the square, forward
    assert flops_per_token(config.model, S, 10) == pytest.approx(3 * (2 * matrices + attention))


def test_a_record_after_half_a_line_stands_on_a_line_of_its_own(tmp_path):
    """A killed process, or a full disk, leaves half a line: the start record that follows is not lost with it."""
    (tmp_path / "log.jsonl").write_text('{"kind": "start", "step": 0}\n{"kind": "train", "st')
    log = RunLog(tmp_path, is_main=True, is_masked=False)
    log.write("start", step=4)
    log.write("train", step=5)
    log.close()
    history = read_log(tmp_path)
    assert [start["step"] for start in history.starts] == [0, 4] and history.damaged_lines == 1
    assert (tmp_path / "log.jsonl").read_text().splitlines()[2:] == ['{"kind": "start", "step": 4}', '{"kind": "train", "step": 5}']


def test_mfu_is_of_the_peak_of_the_layers_products(tiny_config):
    plain = config_from_dict(tiny_config())
    fp8 = plain.model_copy(update={"train": plain.train.model_copy(update={"fp8": "hybrid"})})
    own = fp8.model_copy(update={"log": fp8.log.model_copy(update={"peak_tflops": 7.0})})
    assert peak_of_rank(plain, "NVIDIA H100 80GB HBM3") == (989.0, "989 TFLOP/s, dense bf16, data sheet of h100")
    assert peak_of_rank(fp8, "NVIDIA H100 80GB HBM3") == (1979.0, "1979 TFLOP/s, dense FP8, data sheet of h100")
    assert peak_of_rank(own, "NVIDIA H100 80GB HBM3") == (7.0, "7 TFLOP/s (log.peak_tflops)")
    assert peak_of_rank(fp8, "cpu")[0] is None
