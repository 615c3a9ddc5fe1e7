"""What `make gpu-check` measures: published shapes, and the ways to train them, as settings over the recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_BASES = 4_000_000
SEED = 1234


@dataclass(frozen=True)
class Workload:
    """A recipe's model with the batch it is measured with."""

    recipe: str
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int
    num_layers: int | None = None
    """Fewer than the recipe's, where all do not fit one GPU."""

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.global_batch_size * self.sequence_length


WORKLOADS = {
    "tiny": Workload("tiny-generator", 128, 8, 16),
    "tiny-aido": Workload("tiny-aido-dna", 128, 2, 4),
    "nt-v2-50m": Workload("nt-v2-50m", 2048, 16, 32),
    "nt-v2-500m": Workload("nt-v2-500m", 2048, 8, 32),
    "generator-1.2b-4k": Workload("generator-1.2b", 4096, 4, 16),
    "generator-1.2b": Workload("generator-1.2b", 16384, 1, 4),
    "generator-3b": Workload("generator-3b", 8192, 1, 4),
    "aido-dna-7b-layers": Workload("aido-dna-7b", 4000, 4, 8, num_layers=8),
}
"""generator-1.2b and aido-dna-7b-layers are the two that are compared with others: real contexts, 16,384 and 4,000 tokens."""

TE = ("model.transformer_impl=transformer_engine",)
FUSED = (
    *TE,
    "train.bias_activation_fusion=true",
    "train.cross_entropy_loss_fusion=true",
    "train.cross_entropy_fusion_impl=te",
    "train.gradient_accumulation_fusion=true",
    "train.apply_rope_fusion=true",
)
FP8 = (*FUSED, "train.fp8=hybrid")
OURS: dict[str, tuple[str, ...]] = {
    "torch": ("model.transformer_impl=torch",),
    "torch-fused": ("model.transformer_impl=torch", "train.bias_activation_fusion=true", "train.cross_entropy_loss_fusion=true"),
    "te": TE,
    "te-fused": FUSED,
    "te-fp8": FP8,
    "te-fp8-delayed": (*FP8, "train.fp8_recipe=delayed"),
    "te-fp8-blockwise": (*FP8, "train.fp8_recipe=blockwise"),
    "te-graphs": (*FUSED, "train.cuda_graph_impl=local"),
    "te-graphs-te": (*FUSED, "train.cuda_graph_impl=transformer_engine"),
    "te-fp8-graphs": (*FP8, "train.cuda_graph_impl=local"),
}
"""Ours, each as settings."""
RIVALS = ("transformers", "transformers-compiled", "minimal")
"""transformers with SDPA, as it is and compiled; minimal: the plainest torch model of the same shape, compiled (`minimal_model.py`)."""


def run_config(name: str, contestant: str, folder: Path, device: str) -> Any:
    """The RunConfig of a workload for one of OURS; for a rival the plain one, whose data and batch it takes.

    Settings that a shape cannot have (a fused SwiGLU in a GELU model) are an error, as for any run.
    """
    from dnapretrain.config_file import load_config

    work = WORKLOADS[name]
    settings = [
        f"data.train={folder / 'random'}",
        "data.valid={}",
        "data.split={by: none}",
        "data.stages=[]",
        "data.sampling=windows",
        "data.pack_order=document",
        "data.document_attention=false",
        "data.stride=null",
        "data.window_length=null",
        "data.window_jitter=0",
        "data.min_length=1",
        f"data.sequence_length={work.sequence_length}",
        f"model.max_position_embeddings={work.sequence_length}",
        "parallel={}",
        "optim={lr: 1.0e-4, lr_decay_style: constant}",
        "checkpoint={}",
        f"train.run_dir={folder / contestant}",
        "train.train_steps=1000000",
        f"train.micro_batch_size={work.micro_batch_size}",
        f"train.global_batch_size={work.global_batch_size}",
        "train.rampup_batch_size=null",
        "train.eval_interval=0",
        "train.eval_samples=null",
        "train.recompute=none",
        f"train.precision={'bf16' if device == 'cuda' else 'fp32'}",
        f"train.device={device}",
        *([f"model.num_layers={work.num_layers}"] if work.num_layers else []),
        *OURS.get(contestant, OURS["torch"]),
    ]
    return load_config(work.recipe, settings)


def write_shard(folder: Path) -> None:
    """Random bases, through `preprocess` as any genome."""
    import numpy as np

    from dnapretrain.data.shards.preprocess import preprocess

    bases = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, NUM_BASES)]
    (folder / "random.fa").write_bytes(b">random\n" + bases.tobytes() + b"\n")
    preprocess([folder / "random.fa"], folder / "random")


def flops_per_step(config: Any, vocab_size: int) -> float:
    """By FLOPS_FORMULA."""
    from dnapretrain.model.counts import flops_per_token

    tokens = config.train.global_batch_size * config.data.sequence_length
    return tokens * flops_per_token(config.model, config.data.sequence_length, vocab_size)
