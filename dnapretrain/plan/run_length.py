"""How long a run is: its steps, samples, tokens and FLOPs, over the lengths of samples that it goes through."""

from __future__ import annotations

from typing import Any

from dnapretrain.config import RunConfig
from dnapretrain.data.sampling.lengths import length_stages
from dnapretrain.model.counts import flops_per_token


def stages_of_run(config: RunConfig) -> list[dict[str, int]]:
    """The lengths of samples in their order, each with its first step and its samples up to the end of the run."""
    samples = config.samples_after(config.train.train_steps)
    stages = [stage for stage in length_stages(config.data_by_samples()) if stage.start < samples]
    ends = [*(stage.start for stage in stages[1:]), samples]
    return [
        {"from_step": config.steps_before(stage.start)[0] + 1, "sequence_length": stage.length, "samples": end - stage.start}
        for stage, end in zip(stages, ends, strict=True)
    ]


def run_length(config: RunConfig, bases_per_token: int) -> dict[str, int]:
    """Steps, samples, tokens and at most how many bases."""
    steps = config.train.train_steps
    samples = config.samples_after(steps)
    tokens = sum(stage["samples"] * stage["sequence_length"] for stage in stages_of_run(config))
    tokenizer = config.tokenizer  # of the masked objective both ends of a sample are tokens without bases
    ends = tokenizer.add_bos + tokenizer.add_eos if config.is_masked else 0
    return {"steps": steps, "samples": samples, "tokens": tokens, "bases_at_most": (tokens - samples * ends) * bases_per_token}


def compute_of_run(config: RunConfig, vocab_size: int) -> dict[str, Any]:
    """FLOPs by FLOPS_FORMULA. Of several lengths, a token and a step are those of the longest; `stages` has those of each."""
    stages: list[dict[str, Any]] = []
    for stage in stages_of_run(config):
        per_token = flops_per_token(config.model, stage["sequence_length"], vocab_size)
        tokens_per_step = config.train.global_batch_size * stage["sequence_length"]
        stages.append({**stage, "flops_per_token": per_token, "tokens_per_step": tokens_per_step})
    longest = max(stages, key=lambda stage: int(stage["sequence_length"]))
    per_token, tokens_per_step = longest["flops_per_token"], longest["tokens_per_step"]
    return {
        "flops_per_token": per_token,
        "tokens_per_step": tokens_per_step,
        "flops_per_step": per_token * tokens_per_step,
        "flops_of_run": sum(stage["flops_per_token"] * (stage["samples"] * stage["sequence_length"]) for stage in stages),
        "stages": stages,
    }
