"""The check of a node: real products and sums on two ranks, and what is said of ranks that differ."""

from __future__ import annotations

import dataclasses

import pytest

from dnapretrain.parallel import node_check
from dnapretrain.parallel.node_check import RankCheck, check_node, problems_of_checks

GOOD = [RankCheck(rank, "H100", 700.0, True, 400.0, True) for rank in range(4)]


def test_two_ranks_here(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")  # a task of a job that has one per node: the check is of this node alone
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    checks = check_node(2)
    assert problems_of_checks(checks, 2) == []
    assert [check.rank for check in checks] == [0, 1]
    assert all(check.matmul_tflops > 0 and check.all_reduce_gbytes_per_second > 0 for check in checks)


def test_one_rank_needs_no_launcher(monkeypatch):
    monkeypatch.setattr(node_check, "MATMUL_SECONDS", 0.1)
    (check,) = check_node(1)
    assert check.matmul_right and problems_of_checks([check], 1) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"matmul_right": False}, "rank 2 (H100) multiplies matrices wrongly"),
        ({"all_reduce_right": False}, "rank 2 (H100) gets a wrong sum"),
        ({"matmul_tflops": 300.0}, "rank 2 (H100) is slow: matmul_tflops 300, median 700"),
        ({"all_reduce_gbytes_per_second": 10.0}, "rank 2 (H100) is slow: all_reduce"),
    ],
)
def test_a_bad_rank_is_named(changed, message):
    checks = [dataclasses.replace(check, **changed) if check.rank == 2 else check for check in GOOD]
    (problem,) = problems_of_checks(checks, 4)
    assert message in problem


def test_a_rank_that_did_not_end_is_named():
    assert "rank(s) 1, 3 did not end" in problems_of_checks([GOOD[0], GOOD[2]], 4)[0]
    assert len(problems_of_checks([], 2)) == 1


def test_a_wrong_product_is_seen(monkeypatch):
    import torch

    monkeypatch.setattr(node_check, "MATMUL_SECONDS", 0.0)
    right = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: right(a, b) + (0.5 if a.dtype == torch.float32 else 0.0))
    assert node_check._matmul(torch.device("cpu"))[1] is False
