"""The table of GPUs: found by kind and by the name torch gives, and by no name that merely contains another."""

from __future__ import annotations

import pytest

from dnapretrain.errors import ConfigError
from dnapretrain.parallel.gpus import GPUS, check_fp8, gpu_by_device_name, gpu_by_kind, mfu_peak


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA L40", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GB200", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("Tesla V100-SXM2-32GB", None),
        ("", None),
    ],
)
def test_device_names(name, kind):
    gpu = gpu_by_device_name(name)
    assert (gpu.kind if gpu else None) == kind


def test_names_are_given_once():
    kinds = [gpu.kind for gpu in GPUS]
    names = [name for gpu in GPUS for name in gpu.device_names]
    assert len(set(kinds)) == len(kinds)
    assert len(set(names)) == len(names)


def test_kinds_in_any_case_and_unknown_ones():
    assert gpu_by_kind("H100") is gpu_by_kind("h100")
    with pytest.raises(ConfigError, match=r"no data sheet for GPU 'h1000'. Known: .*h100, "):
        gpu_by_kind("h1000")


def test_fp8_peaks():
    """Twice bf16 on every data sheet that has FP8, and no scales without a peak."""
    for gpu in GPUS:
        assert (gpu.fp8_tflops is None) == (not gpu.fp8_recipes)
        assert gpu.fp8_tflops is None or gpu.fp8_tflops == pytest.approx(2 * gpu.bf16_tflops, rel=0.02)
    assert {gpu.kind for gpu in GPUS if not gpu.fp8_tflops} == {"a10", "a100-40", "a100-80", "a6000"}
    check_fp8(gpu_by_kind("b200"), "mxfp8")
    with pytest.raises(ConfigError, match=r"a100-80 has no FP8"):
        check_fp8(gpu_by_kind("a100-80"), "tensorwise")


def test_the_peak_of_mfu():
    assert mfu_peak(gpu_by_kind("h100"), False) == (989.0, "dense bf16")
    assert mfu_peak(gpu_by_kind("h100"), True) == (1979.0, "dense FP8")
    assert mfu_peak(gpu_by_kind("a100-80"), True) == (312.0, "dense bf16")
