"""Section train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from dnapretrain.config.section import Section


class TrainConfig(Section):
    """Length, batch, precision and evaluation of the run."""

    run_dir: Path
    """Folder of this run: config, log, checkpoints, report."""
    train_steps: int = Field(gt=0)
    stop_at_step: int | None = Field(None, gt=0)
    """Stop here with a checkpoint; the schedule still runs to train_steps, so a later start goes on as if nothing had stopped."""
    exit_duration: float | None = Field(None, gt=0)
    """Stop with a checkpoint after so long: seconds, or text such as 3h50m, 90s, 03:50:00. Checked after each step."""
    slurm_margin: float = Field(180.0, ge=0)
    """Stop with a checkpoint so long before the Slurm job's time is up: time for a step and a save. Seconds or text, as exit_duration."""
    micro_batch_size: int = Field(gt=0)
    """Samples per forward pass on one data-parallel rank."""
    global_batch_size: int = Field(gt=0)
    """Samples per step over all data-parallel ranks."""
    rampup_batch_size: tuple[int, int, int] | None = None
    """[start, increment, samples]: begin with batches of `start` samples and add `increment` at even distances over the first
    `samples` samples, up to global_batch_size. Numbers of steps stay steps; the schedule between them runs in samples."""
    loss: Literal["token", "nucleotide"] = "token"
    """What a target costs, next token or masked. token: cross-entropy of the whole token. nucleotide, for tokenizer.kind=kmer and
    generator: each base of a k-mer by its marginal probability (GENERator v2's factorised nucleotide supervision), in nats per base."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 keeps fp32 main weights, gradients and optimizer state."""
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """Matrix products of the layers in FP8 (Transformer Engine; precision=bf16 for all else: attention, norms, embeddings, head).
    hybrid: E4M3 forward, E5M2 for gradients. e4m3: E4M3 in both directions."""
    fp8_recipe: Literal["tensorwise", "delayed", "blockwise", "mxfp8"] = "tensorwise"
    """Where scales come from. tensorwise: the tensor itself. delayed: the largest values of earlier steps, which checkpoints hold.
    blockwise: blocks of 128 (Hopper, CUDA 12.9). mxfp8: blocks of 32 (Blackwell)."""
    fp8_amax_history_len: int | None = Field(None, gt=0)
    """delayed: steps that the largest values are remembered for; default 1024."""
    fp8_amax_compute_algo: Literal["max", "most_recent"] | None = None
    """delayed: which of them makes the scale; default max."""
    first_last_layers_bf16: bool = False
    """Keep the first and the last layers in bf16 where fp8 is on; not with delayed scaling."""
    num_layers_at_start_in_bf16: int = Field(1, ge=0)
    num_layers_at_end_in_bf16: int = Field(1, ge=0)
    """How many, with first_last_layers_bf16."""
    attention_backend: Literal["auto", "flash", "fused", "unfused"] = "auto"
    """Kernels of Transformer Engine's attention: flash-attn, cuDNN's fused ones, its own unfused ones; auto: it chooses."""
    apply_rope_fusion: bool = False
    """Rotate queries and keys in one kernel of Transformer Engine's; it cannot multiply by YaRN's attention factor."""
    bias_activation_fusion: bool = False
    """SwiGLU, with the bias before it, in one compiled kernel that keeps its input only."""
    cross_entropy_loss_fusion: bool = False
    """Cross-entropy in fewer kernels: those of cross_entropy_fusion_impl."""
    cross_entropy_fusion_impl: Literal["native", "te"] = "native"
    """native: Megatron-core's compiled functions (gradient in bf16). te: Transformer Engine's Triton kernel."""
    gradient_accumulation_fusion: bool = False
    """Add weight gradients to the fp32 sums within the matrix product: Transformer Engine's layers, or Apex's extension."""
    cuda_graph_impl: Literal["none", "local", "transformer_engine"] = "none"
    """Capture each layer as a CUDA graph, by Megatron-core (local) or by Transformer Engine. For decoders without dropout and
    recomputation, on one pipeline stage, with samples of one length."""
    cuda_graph_warmup_steps: int = Field(3, ge=1)
    """Passes before the capture: of each layer (local), or steps of training (transformer_engine)."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Recompute activations in the backward pass: attention only (selective) or whole layers (full)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 1234
    """Key of the initial weights."""
    eval_interval: int = Field(0, ge=0)
    """Steps between evaluations on the held-out sets; 0: only at the end."""
    eval_samples: int | None = Field(None, gt=0)
    """Samples, spread evenly over each held-out set, in the evaluations on the way (the last one uses all); default: all."""
    on_bad_step: Literal["stop", "skip", "rewind"] = "skip"
    """What happens where loss or gradient norm are not finite or a spike. stop: end with an error, saved as before the step. skip: no
    update, on to the next samples. rewind: back to the weights of the newest checkpoint, on with the samples after the bad ones."""
    loss_spike_sigmas: float = Field(0.0, ge=0)
    """A step is bad whose loss exceeds the median of the last spike_window good steps by so many standard deviations (1.4826 x the
    median absolute deviation); 0: off. 6 is usual."""
    grad_norm_spike_factor: float = Field(0.0, ge=0)
    """A step is bad whose gradient norm, before clipping, exceeds so many times the median of these steps; 0: off."""
    spike_window: int = Field(128, ge=2)
    """Good steps that spikes are measured against; until a stage of the data has made so many, nothing is a spike."""
    max_bad_steps: int = Field(10, ge=1)
    """End with an error when more than so many of the last spike_window steps were bad; with rewind, of at least the last
    checkpoint.save_interval steps."""
    check_weight_hash_across_dp_replicas_interval: int = Field(0, ge=0)
    """Steps between comparisons of the weights on all data-parallel ranks, by digests; 0: never. A difference ends the run."""
    deterministic: bool = False
    """Use only CUDA kernels whose results do not change from run to run, and refuse others; slower. On CPU it changes nothing."""

    @field_validator("exit_duration", "slurm_margin", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return parse_seconds(value) if isinstance(value, str) else value


def parse_seconds(text: str) -> float | str:
    """Seconds of '3h50m', '90s', '1d', '03:50:00' or '2-00:00:00'; `text` itself where it is none of them."""
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text.strip())
    match = units if units and text.strip() else clock
    if match is None:
        return text
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
