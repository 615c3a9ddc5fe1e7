"""Held-out loss of a Hugging Face folder: the samples, targets and figures of `evaluate/heldout.py`, with transformers' model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dnapretrain.adapt.backbones.folder import load_model
from dnapretrain.config import RunConfig
from dnapretrain.config_file import config_from_dict
from dnapretrain.convert.families import family_of_folder
from dnapretrain.convert.folders import model_of, read_hf_config, tokenizer_of
from dnapretrain.data.sampling.samples import Batch, SampleStream
from dnapretrain.errors import ConfigError
from dnapretrain.evaluate.counted import spread, token_bases
from dnapretrain.evaluate.heldout import HeldOutLoss, count_bases, summarise
from dnapretrain.evaluate.regions import num_region_sums, region_sums
from dnapretrain.model.loss import NUM_TOTALS, weighted_loss
from dnapretrain.model.nucleotide_loss import KmerRows, base_bits, kmer_rows, nucleotide_losses
from dnapretrain.parallel.platform import choose_device

MICRO_BATCH_SIZE = 4
MLM_PROBABILITY = 0.15
READ = ("data.", "tokenizer.k", "train.micro_batch_size", "train.loss", "train.device")
"""Settings that mean something to a folder."""


def folder_config(directory: Path, data: Path, name: str, overrides: Sequence[str] = (), fit_data: Path | None = None) -> RunConfig:
    """What the evaluation of a folder on the shard `data` reads, as a run's settings: the model's context as sequence_length, the
    masking of BERT for encoders, float32. Overrides lie over it. Raises ConfigError for those that a folder has no use for."""
    for override in overrides:
        key = override.partition("=")[0]
        if not key.startswith(READ):
            raise ConfigError(f"'{override}' means nothing to a Hugging Face folder. Settings that do: {', '.join(READ)}.")
    hf_config = read_hf_config(directory)
    family = family_of_folder(hf_config)
    model = model_of(directory, family, hf_config)
    tokenizer, _ = tokenizer_of(directory, family, hf_config)
    file = {"file": str(directory / "tokenizer.json")} if tokenizer.bpe else {}
    return config_from_dict(
        {
            "data": {
                "train": [str(fit_data or data)],
                "valid": {name: str(data)},
                "sequence_length": model.max_position_embeddings,
                "masking": {"mlm_probability": MLM_PROBABILITY if model.kind == "encoder" else 0.0},
            },
            "tokenizer": {**tokenizer.to_config(), **file},
            "model": model.model_dump(),
            "optim": {"lr": 1e-4},
            "train": {
                "run_dir": str(directory),
                "train_steps": 1,
                "micro_batch_size": MICRO_BATCH_SIZE,
                "global_batch_size": MICRO_BATCH_SIZE,
                "precision": "fp32",
            },
        },
        overrides,
    )


@torch.no_grad()
def folder_loss(
    directory: Path, config: RunConfig, streams: dict[str, SampleStream], device: str, max_samples: int | None = None
) -> dict[str, HeldOutLoss]:
    """The figures of each set, as `held_out_loss` gives them for a checkpoint. `config` is `folder_config`'s."""
    model = load_model(directory, device, config.is_masked)
    return {name: _loss(model, config, stream, device, max_samples) for name, stream in streams.items()}


def _loss(model: Any, config: RunConfig, stream: SampleStream, device: str, max_samples: int | None) -> HeldOutLoss:
    ids = spread(stream.num_samples, max_samples)
    bases_V = torch.from_numpy(token_bases(stream.tokenizer)).to(device)
    totals = torch.zeros(NUM_TOTALS + 2 + num_region_sums(stream.regions), dtype=torch.float64, device=device)
    for first in range(0, len(ids), config.train.micro_batch_size):
        some = ids[first : first + config.train.micro_batch_size]
        batch = stream.batch(some)
        output, labels_BS, loss_mask_BS = _forward(model, config, stream, batch, device)
        num_tokens = int((batch.labels != stream.tokenizer.pad_id).sum())
        *_, report = weighted_loss(loss_mask_BS, num_tokens, output)
        first_B = None if config.is_masked else torch.from_numpy(batch.tokens[:, 0]).to(device)
        by_region = region_sums(stream.regions, some, first_B, labels_BS, output[0], loss_mask_BS, config.train.loss)
        totals += torch.cat([report, count_bases(bases_V, labels_BS, loss_mask_BS), by_region])
    return summarise(totals, stream, config.train.loss, len(ids))


def _forward(model: Any, config: RunConfig, stream: SampleStream, batch: Batch, device: str) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """What the last stage of a native model gives (`TokenLoss`), with labels and loss mask [B, S].

    Encoders are told what is padding; a decoder's padding stands behind all that it predicts.
    """
    tokens_BS, labels_BS, loss_mask_BS = (torch.from_numpy(values).to(device) for values in (batch.tokens, batch.labels, batch.loss_mask))
    real_BS = torch.from_numpy(batch.tokens != stream.tokenizer.pad_id).to(device) if config.is_masked else torch.ones_like(tokens_BS)
    logits_BSV = model(input_ids=tokens_BS, attention_mask=real_BS.long()).logits.float()[..., : stream.tokenizer.vocab_size]
    rows = kmer_rows(stream.tokenizer)
    correct_BS = logits_BSV.argmax(dim=-1) == labels_BS
    metric = base_bits(logits_BSV, labels_BS, rows, _ONE_RANK) if rows else ()
    return (_losses(logits_BSV, labels_BS, rows, config.train.loss), correct_BS, *metric), labels_BS, loss_mask_BS


def _losses(logits_BSV: Tensor, labels_BS: Tensor, rows: KmerRows | None, loss: str) -> Tensor:
    if loss == "nucleotide" and rows:
        return nucleotide_losses(logits_BSV, labels_BS, rows, _ONE_RANK)
    return F.cross_entropy(logits_BSV.transpose(1, 2), labels_BS, reduction="none")


class _OneRank:
    """The tensor-parallel group of a model that one process holds whole."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


_ONE_RANK = cast(Any, _OneRank())


def device_of(config: RunConfig) -> str:
    """cpu or cuda, as train.device says. Raises ConfigError for cuda without a GPU."""
    return choose_device(config.train.device)
