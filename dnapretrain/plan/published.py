"""Published training runs beside what the model of step time says of them: how far it can be trusted.

Two kinds. Runs of well-kept trainers, on which the constants of `hardware` were calibrated; and the runs of DNA models,
which reached far less of the peak: they are no measure of the formula, and it is none of what such a program will reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from dnapretrain.config import RunConfig
from dnapretrain.config_file import ALIASES, load_config
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.model.counts import flops_per_token
from dnapretrain.parallel.gpus import gpu_by_kind, mfu_peak
from dnapretrain.plan.hardware import MEGATRON, MEGATRON_2021, MEGATRON_OVERLAPPED, OURS, PLAIN_2023, Engine
from dnapretrain.plan.step_time import step_time


@dataclass(frozen=True)
class PublishedRun:
    """A run as it was published."""

    name: str
    source: str
    gpu: str
    num_gpus: int
    config: RunConfig
    vocab_size: int
    tokens_per_second_per_gpu: float
    engine: Engine


NARAYANAN = "Narayanan et al. 2021, table 1"
KORTHIKANTI = "Korthikanti et al. 2022, table 5"
FOUNDRY = "mosaicml/llm-foundry 061f2c7, benchmarks"
LLAMA = "Llama 3, table 4"
README = "Megatron-LM's README"
BRIDGE = "Megatron-Bridge 067f987, performance"
"""All tables were held against their sources, Narayanan's and Korthikanti's against transcripts of them (MLCarbon 69070b2,
data/megatron_table.csv; calculon 2dd9c5c, calculon/llm/validation.py), Llama's only in its range of MFU, 38 to 43 %."""

# Heads, hidden size, layers, tp, pp, GPUs, batch, TFLOP/s per GPU, recomputation counted; 2,048 tokens, vocabulary 51,200.
_TABLE_1 = (
    ("GPT 1.7B", 24, 2304, 24, 1, 1, 32, 512, 137),
    ("GPT 3.6B", 32, 3072, 30, 2, 1, 64, 512, 138),
    ("GPT 7.5B", 32, 4096, 36, 4, 1, 128, 512, 142),
    ("GPT 18.4B", 48, 6144, 40, 8, 1, 256, 1024, 135),
    ("GPT 39.1B", 64, 8192, 48, 8, 2, 512, 1536, 138),
    ("GPT 76.1B", 80, 10240, 60, 8, 4, 1024, 1792, 140),
    ("GPT 145.6B", 96, 12288, 80, 8, 8, 1536, 2304, 148),
)
# Heads, hidden size, layers, pp, vpp, GPUs, batch, micro-batch, seconds per step; tp 8, sequence parallel, selective recomputation.
_TABLE_5 = (
    ("GPT 22B", 64, 6144, 48, 1, None, 8, 4, 4, 1.10),
    ("GPT 175B", 96, 12288, 96, 8, 3, 64, 64, 1, 13.75),
    ("GPT 530B", 128, 20480, 105, 35, 3, 280, 280, 1, 37.83),
)
# GPU, model, heads, hidden size, layers, tokens, GPUs, micro-batch, accumulation, recomputation, tokens/s per GPU.
_FOUNDRY = (
    ("a100-80", "MPT 760M", 12, 1536, 24, 2048, 8, 24, 2, False, 32434),
    ("a100-80", "MPT 1B", 16, 2048, 24, 2048, 8, 14, 4, False, 20513),
    ("a100-80", "MPT 1B", 16, 2048, 24, 16384, 8, 2, 4, False, 9956),
    ("a100-80", "MPT 3B", 20, 2560, 32, 2048, 8, 10, 2, False, 10811),
    ("a100-80", "MPT 3B", 20, 2560, 32, 8192, 8, 3, 6, False, 7695),
    ("a100-80", "MPT 7B", 32, 4096, 32, 2048, 8, 6, 2, False, 4641),
    ("a100-80", "MPT 7B", 32, 4096, 32, 8192, 8, 8, 2, True, 3206),
    ("h100", "MPT 760M", 12, 1536, 24, 2048, 8, 24, 2, False, 63147),
    ("h100", "MPT 1B", 16, 2048, 24, 2048, 8, 14, 1, False, 45455),
    ("h100", "MPT 1B", 16, 2048, 24, 16384, 8, 2, 4, False, 19649),
    ("h100", "MPT 3B", 20, 2560, 32, 2048, 16, 10, 3, False, 24142),
    ("h100", "MPT 3B", 20, 2560, 32, 8192, 8, 3, 6, False, 16578),
    ("h100", "MPT 7B", 32, 4096, 32, 2048, 8, 6, 1, False, 10643),
    ("h100", "MPT 7B", 32, 4096, 32, 8192, 8, 8, 2, True, 6935),
)
# The same with Transformer Engine's FP8 of 2023, delayed scaling; H100, one node.
_FOUNDRY_FP8 = (
    ("MPT 1B", 16, 2048, 24, 512, 56, 4, 70315),
    ("MPT 1B", 16, 2048, 24, 8192, 2, 4, 32010),
    ("MPT 3B", 20, 2560, 32, 512, 40, 6, 36527),
    ("MPT 3B", 20, 2560, 32, 2048, 10, 6, 30586),
    ("MPT 3B", 20, 2560, 32, 8192, 3, 6, 19146),
)
# GPU, model, heads, hidden size, ffn, layers, layout, GPUs, batch, micro-batch, tokens/s per GPU; 8,192 tokens, tensorwise scaling.
_BRIDGE: tuple[tuple[str, str, int, int, int, int, dict[str, int], int, int, int, int], ...] = (
    ("h100", "Llama 3 8B", 32, 4096, 14336, 32, {}, 8, 128, 1, 14451),
    ("b200", "Llama 3 8B", 32, 4096, 14336, 32, {}, 8, 128, 2, 30624),
    ("h100", "Llama 3 70B", 64, 8192, 28672, 80, {"tp": 4, "pp": 8, "vpp": 5}, 64, 128, 1, 1602),
    ("h100", "Llama 3 70B", 64, 8192, 28672, 80, {"tp": 4, "pp": 8, "vpp": 5}, 64, 256, 1, 1664),
    ("h100", "Llama 3.1 405B", 128, 16384, 53248, 128, {"tp": 8, "pp": 8, "cp": 2, "vpp": 8}, 1024, 512, 1, 292),
    ("h100", "Llama 3.1 405B", 128, 16384, 53248, 128, {"tp": 8, "pp": 8, "cp": 2, "vpp": 8}, 1024, 1536, 1, 328),
    ("b200", "Llama 3.1 405B", 128, 16384, 53248, 128, {"tp": 4, "pp": 8, "cp": 2, "vpp": 8}, 128, 64, 1, 661),
)


@cache
def reference_runs() -> tuple[PublishedRun, ...]:
    """Runs of well-kept trainers."""
    return (*_narayanan(), *_korthikanti(), *_foundry(), *_largest())


def _narayanan() -> list[PublishedRun]:
    runs = []
    for name, heads, hidden, layers, tp, pp, gpus, batch, tflops in _TABLE_1:
        per_sample = 96 * 2048 * layers * hidden**2 * (1 + 2048 / (6 * hidden) + 51_200 / (16 * layers * hidden))  # their equation 3
        parallel = {"tp": tp, "pp": pp, "use_distributed_optimizer": False}
        config = _gpt(heads, hidden, layers, 2048, parallel, batch, 1 if pp > 1 else 4, "full", 0.1)
        runs.append(PublishedRun(name, NARAYANAN, "a100-80", gpus, config, 51_200, tflops * 1e12 / per_sample * 2048, MEGATRON_2021))
    return runs


def _korthikanti() -> list[PublishedRun]:
    runs = []
    for name, heads, hidden, layers, pp, vpp, gpus, batch, size, seconds in _TABLE_5:
        parallel = {"tp": 8, "pp": pp, "vpp": vpp, "sequence_parallel": True}
        config = _gpt(heads, hidden, layers, 2048, parallel, batch, size, "selective", 0.1)
        runs.append(PublishedRun(name, KORTHIKANTI, "a100-80", gpus, config, 51_200, batch * 2048 / seconds / gpus, MEGATRON_2021))
    return runs


def _foundry() -> list[PublishedRun]:
    runs = []
    for gpu, name, heads, hidden, layers, length, gpus, size, times, recomputed, rate in _FOUNDRY:
        parallel = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
        config = _gpt(heads, hidden, layers, length, parallel, size * times * gpus, size, "full" if recomputed else "none")
        runs.append(PublishedRun(f"{name}, {length:,}", FOUNDRY, gpu, gpus, config, 50_368, rate, PLAIN_2023))
    return runs


def _largest() -> list[PublishedRun]:
    """Runs on thousands of H100; what is not published of their layouts is assumed: micro-batches of 1, and as many chunks as layers."""
    overlap = {"sequence_parallel": True, "use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
    runs = []
    for gpus, share in ((96, 0.47), (4608, 0.42)):
        config = _gpt(96, 12288, 96, 4096, {"tp": 8, "pp": 12, "vpp": 8, **overlap}, 1152, 1, "none")
        per_token = _full_flops(config, 131_072)
        runs.append(PublishedRun("GPT 175B", README, "h100", gpus, config, 131_072, share * 989e12 / per_token, MEGATRON_OVERLAPPED))
    for gpus, cp, length, batch, tflops in ((8192, 1, 8192, 2048, 430), (16384, 1, 8192, 2048, 400), (16384, 16, 131_072, 128, 380)):
        parallel = {"tp": 8, "pp": 16, "cp": cp, "cp_comm_type": "all_gather", "vpp": 8, **overlap}
        # 126 layers, one less at each end; 128 here.
        config = _config(
            {"num_layers": 128, "hidden_size": 16384, "num_attention_heads": 128, "num_query_groups": 8, "ffn_hidden_size": 53248},
            length,
            parallel,
            batch,
            1,
            "none",
        )
        rate = tflops * 1e12 / flops_per_token(config.model, length, 128_256)
        runs.append(PublishedRun(f"Llama 3 405B, {length:,}", LLAMA, "h100", gpus, config, 128_256, rate, MEGATRON))
    return runs


@cache
def fp8_runs() -> tuple[PublishedRun, ...]:
    """Runs of well-kept trainers in FP8. No constant was fitted to them."""
    shared = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
    runs = []
    for name, heads, hidden, layers, length, size, times, rate in _FOUNDRY_FP8:
        config = _in_fp8(_gpt(heads, hidden, layers, length, shared, size * times * 8, size, "none"), "delayed")
        runs.append(PublishedRun(f"{name}, {length:,}", FOUNDRY, "h100", 8, config, 50_368, rate, PLAIN_2023))
    for gpu, name, heads, hidden, ffn, layers, layout, gpus, batch, size, rate in _BRIDGE:
        model = {"num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "num_query_groups": 8, "ffn_hidden_size": ffn}
        config = _config(model, 8192, {**layout, **shared, "sequence_parallel": "tp" in layout}, batch, size, "none")
        runs.append(PublishedRun(name, BRIDGE, gpu, gpus, _in_fp8(config, "tensorwise"), 128_256, rate, MEGATRON_OVERLAPPED))
    return tuple(runs)


@cache
def dna_runs() -> tuple[PublishedRun, ...]:
    """Runs of published DNA models, from their papers and cards: days of all steps, what else happened in them included."""
    aido, nt = load_config("aido-dna-7b"), load_config("nt-v1-2.5b-multi")
    small = load_config("aido-dna-300m")
    generator = load_config("generator-1.2b")
    return (
        _of_days("AIDO.DNA-7B", "model card: 8 days", "h100", 256, aido, 100_000 * 1024 * 4002, 8),
        _of_days("AIDO.DNA-300M", "4 days; as many steps as 7B: assumed", "a100-80", 32, small, 100_000 * 1024 * 4002, 4),
        _of_days("NT 2.5B", "Dalla-Torre et al.: 28 days", "a100-80", 128, nt, 300e9, 28),
        _of_days("GENERator 1.2B", "368 h (unconfirmed)", "a100-80", 32, generator, 386e9, 368 / 24),
    )


def _of_days(name: str, source: str, gpu: str, num_gpus: int, config: RunConfig, tokens: float, days: float) -> PublishedRun:
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    return PublishedRun(name, source, gpu, num_gpus, config, vocab_size, tokens / (days * 86_400 * num_gpus), OURS)


def predicted(run: PublishedRun) -> float:
    """Tokens per second and GPU that the model of step time says of `run`."""
    data_parallel = run.num_gpus // run.config.parallel.model_parallel_size
    length = run.config.data.sequence_length
    seconds = step_time(run.config, length, run.vocab_size, 0, data_parallel, gpu_by_kind(run.gpu), run.engine).total
    return run.config.train.global_batch_size * length / seconds / run.num_gpus


def mfu(run: PublishedRun, tokens_per_second_per_gpu: float) -> float:
    """Share of the dense peak in bf16, of FP8 runs of that in FP8, by FLOPS_FORMULA, at this rate."""
    per_token = flops_per_token(run.config.model, run.config.data.sequence_length, run.vocab_size)
    return tokens_per_second_per_gpu * per_token / (mfu_peak(gpu_by_kind(run.gpu), run.config.train.fp8 != "none")[0] * 1e12)


def format_calibration() -> str:
    """The tables: published, predicted, error."""
    lines = [
        "well-kept trainers, bf16: tokens/s per GPU and share of the dense peak (causal attention counted half), published and by formula"
    ]
    lines += [*map(_line, reference_runs()), _errors(reference_runs())]
    lines += ["", "well-kept trainers, FP8: share of the dense FP8 peak; no constant was fitted to these"]
    lines += [*map(_line, fp8_runs()), _errors(fp8_runs())]
    lines += ["", "runs of DNA models, whole time: the formula says what this program would need, at the layout of the recipe"]
    lines += [_line(run) for run in dna_runs()]
    return "\n".join(lines)


def _errors(runs: tuple[PublishedRun, ...]) -> str:
    errors = [abs(predicted(run) / run.tokens_per_second_per_gpu - 1) for run in runs]
    return f"mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}"


def _line(run: PublishedRun) -> str:
    said, published = predicted(run), run.tokens_per_second_per_gpu
    return (
        f"{run.name:<24}{run.num_gpus:>6} x {run.gpu:<8}{published:>9,.0f} {mfu(run, published):>6.1%}"
        f"{said:>10,.0f} {mfu(run, said):>6.1%}{said / published - 1:>+10.1%}  {run.source}"
    )


def _full_flops(config: RunConfig, vocab_size: int) -> float:
    """Per token with all of attention counted, as Megatron-LM's README does."""
    model = config.model
    attention = 6.0 * model.num_layers * config.data.sequence_length * model.hidden_size
    return flops_per_token(model, config.data.sequence_length, vocab_size) + attention


def _gpt(
    heads: int, hidden: int, layers: int, length: int, parallel: dict[str, Any], batch: int, size: int, recompute: str, dropout: float = 0.0
) -> RunConfig:
    """A GPT in the style of 2020: layer norms, GELU, learned positions."""
    model = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "ffn_hidden_size": 4 * hidden,
        "normalization": "LayerNorm",
        "activation": "gelu",
        "attention_bias": True,
        "ffn_in_bias": True,
        "ffn_out_bias": True,
        "position_embedding_type": "learned_absolute",
        "untie_embeddings_and_output_weights": False,
        "hidden_dropout": dropout,
    }
    return _config(model, length, parallel, batch, size, recompute)


def _in_fp8(config: RunConfig, recipe: str) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"fp8": "hybrid", "fp8_recipe": recipe})})


def _config(model: dict[str, Any], length: int, parallel: dict[str, Any], batch: int, size: int, recompute: str) -> RunConfig:
    """Settings that this package could not train with, as far as the formulas look at them: their rules are not asked."""
    return RunConfig.model_validate(
        {
            "data": {"train": "nowhere", "sequence_length": length},
            "model": model,
            "parallel": {ALIASES.get(name, name): value for name, value in parallel.items()},
            "optim": {"lr": 1e-4},
            "train": {"run_dir": "nowhere", "train_steps": 1, "micro_batch_size": size, "global_batch_size": batch, "recompute": recompute},
        }
    )
