"""What a checkpoint of a run holds, and how it is read: checked before it is used. `saver` writes them.

`<run_dir>/checkpoints/step_00000100/` holds `weights/` (Megatron-core's torch_dist format, readable under
any layout), `run.yaml`, `tokenizer.json` and, written last, `state.json` with the sample position, the data
digest and the digest of every file. `<run_dir>/checkpoints/latest` names the newest one. FORMAT.md has the bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.validation import StrictHandling

from dnapretrain.config import RunConfig, Section
from dnapretrain.convert.native import FP8_PREFIX, WEIGHTS_DIR, WeightsReader, damaged_file, read_config, read_state, read_tokenizer
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError, DamagedCheckpointError
from dnapretrain.parallel.groups import on_every_rank, problems_of_ranks
from dnapretrain.parallel.platform import Platform
from dnapretrain.train.bad_steps import StepHistory
from dnapretrain.train.fp8_scales import fill_scales, scales_to_read, scales_to_store
from dnapretrain.train.load_shares import SharedLoad
from dnapretrain.train.node_copies import NodeCopies
from dnapretrain.train.optimizer import adopt_loaded_state, allocate_state, use_settings

SHARDING = {
    # Tensors are stored whole under one name each, so that any layout can read them.
    "distrib_optim_sharding_type": "fully_reshardable",
    "non_homogeneous_layers": True,
    "chained_optim_avoid_prefix": True,
}


ANY_VALUE = ("init_method_std", "transformer_impl", "hidden_dropout", "attention_dropout", "ffn_dropout")
"""Settings of section `model` that the weights of a checkpoint do not depend on."""

UNSAID = ("checkpoint", "log", "train.run_dir", "train.stop_at_step", "train.exit_duration", "train.slurm_margin")
"""Settings that may change from start to start without a word: training is the same."""
UNSAID_LENGTH = 80
"""Of a setting whose values are longer than so many letters, only the name is said."""
ROTARY = ("model.rotary_base", "model.rope_scaling")
"""Settings that say how weights are used: another context length may ask for others."""


@dataclass(frozen=True)
class RunPosition:
    """Where a run stands: what is needed, beside the tensors, to go on exactly."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    schedule_samples: int = 0
    """Samples the learning-rate schedule has advanced by: those of steps that updated the weights."""
    history: StepHistory = field(default_factory=StepHistory)
    """What the rules for bad steps remember."""


def load_checkpoint(
    checkpoint: Path,
    config: RunConfig,
    platform: Platform,
    chunks: list[Any],
    optimizer: Any,
    data_digest_at: Callable[[int], str],
    copies: NodeCopies | None = None,
) -> RunPosition:
    """Read weights, optimizer state and scales of FP8's delayed scaling into place and return the position; from `copies` where this
    node has one.

    `data_digest_at` gives the digest of what the first so many samples depend on.
    Raises CheckpointError when the checkpoint is damaged, or is of another model, tokenizer, precision or data.
    """
    source = copies.choose(checkpoint) if copies else checkpoint
    state = read_state(source)
    _check_fits(checkpoint, read_config(source), config)
    data_digest = data_digest_at(state["consumed_samples"])
    if state.get("data_digest") != data_digest:
        raise CheckpointError(
            f"checkpoint {checkpoint} was trained on other data or in other order (digest {state.get('data_digest')}, now {data_digest}). "
            "Restore data.* and the shards, or start a new run from its weights: checkpoint.load=<it> with another train.run_dir."
        )
    if not copies:  # else they have chosen what is whole
        verify_files(checkpoint, state, platform)
    allocate_state(optimizer)
    sharded = sharded_state(chunks, optimizer, is_loading=True)
    if config.train.fp8_recipe == "delayed":
        with on_every_rank(CheckpointError, f"cannot read checkpoint {checkpoint}"):
            reader = WeightsReader(source / WEIGHTS_DIR)
        sharded["fp8"] = scales_to_read(_models(chunks), SHARDING, reader)
    loaded = _load_all(sharded, source)
    fill_chunks(chunks, loaded)
    fill_scales(_models(chunks), SHARDING, loaded.get("fp8", {}))
    adopt_loaded_state(optimizer, loaded["optimizer"])
    optimizer.load_state_dict(loaded["optimizer"])
    use_settings(optimizer, config.optim)
    if copies:
        copies.was_read(source)
    counts = {name: state[name] for name in ("step", "consumed_samples", "consumed_tokens", "schedule_samples")}
    return RunPosition(**counts, history=StepHistory.from_json(state["history"]) if "history" in state else StepHistory())


def load_newest(
    candidates: Sequence[Path],
    config: RunConfig,
    platform: Platform,
    chunks: list[Any],
    optimizer: Any,
    digest_at: Callable[[int], str],
    copies: NodeCopies | None = None,
) -> tuple[RunPosition, Path, list[str]]:
    """Load the first of `candidates` that is whole: (position, checkpoint, remarks: each that was passed over, each copy
    not used, settings that changed).

    Raises as `load_checkpoint`; DamagedCheckpointError where none is whole.
    """
    warnings: list[str] = []
    for checkpoint in candidates:
        try:
            position = load_checkpoint(checkpoint, config, platform, chunks, optimizer, digest_at, copies)
            changed: list[str] = []
            with contextlib.suppress(CheckpointError):  # a node's copy was read, and the checkpoint itself has lost its run.yaml
                changed = changed_settings(read_config(checkpoint), config)
            said = [f"settings changed since step {position.step}: {', '.join(changed)}"] if changed else []
            return position, checkpoint, warnings + (copies.remarks if copies else []) + said
        except DamagedCheckpointError as damage:
            if checkpoint == candidates[-1]:
                raise
            warnings += copies.remarks if copies else []
            warnings.append(f"WARNING: {damage} The one before it is tried.")
    raise CheckpointError("there is no checkpoint to load. Give one.")


def load_weights(checkpoint: Path, config: RunConfig, platform: Platform, chunks: list[Any]) -> None:
    """Read only the weights into the chunks, to evaluate: fp32 chunks get the fp32 main weights where there are any.

    The rotary embedding may be another than in training. Raises CheckpointError as `load_checkpoint` does.
    """
    check_same(checkpoint, read_config(checkpoint), config, may_differ=ROTARY)
    if read_tokenizer(checkpoint).digest != build_tokenizer(config.tokenizer).digest:
        raise CheckpointError(f"checkpoint {checkpoint} has another vocabulary than the run. Set tokenizer.* as in its run.yaml.")
    verify_files(checkpoint, read_state(checkpoint), platform)
    sharded = sharded_model(chunks)
    if next(iter(chunks[0].parameters())).dtype == torch.float32:
        sharded = in_fp32(sharded, checkpoint)
    fill_chunks(chunks, load_tensors(sharded, checkpoint))


def load_tensors(sharded: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The state that `sharded` describes, filled from the checkpoint, which may hold more."""
    with on_every_rank(DamagedCheckpointError, f"cannot read checkpoint {checkpoint}; use the one before it"):
        loaded: dict[str, Any] = dist_checkpointing.load(
            sharded, str(checkpoint / WEIGHTS_DIR), SharedLoad(), strict=StrictHandling.ASSUME_OK_UNEXPECTED
        )
    return loaded


def in_fp32(sharded: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """What `sharded_model` gives, to be read in fp32 into memory of its own: from the main weights where the checkpoint has any."""
    with on_every_rank(CheckpointError, f"cannot read checkpoint {checkpoint}"):
        reader = WeightsReader(checkpoint / WEIGHTS_DIR)

    def precise(item: Any) -> Any:
        dtype = {"dtype": torch.float32} if isinstance(item, ShardedTensor) else {}
        return replace(item, key=reader.best_key(item.key), data=torch.empty_like(item.data, dtype=torch.float32), **dtype)

    return {part: {name: precise(item) for name, item in items.items()} for part, items in sharded.items()}


def _load_all(sharded: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """As `load_tensors`, of a checkpoint that holds this and nothing else; scales of FP8 may be left where nobody asks for them."""
    with on_every_rank(DamagedCheckpointError, f"cannot read checkpoint {checkpoint}; use the one before it"):
        loaded: dict[str, Any]
        loaded, missing, unexpected = dist_checkpointing.load(
            sharded, str(checkpoint / WEIGHTS_DIR), SharedLoad(), strict=StrictHandling.RETURN_ALL
        )
        if others := sorted(name for name in missing | unexpected if not name.startswith(FP8_PREFIX)):
            raise CheckpointError(f"it and the model differ in {len(others)} tensors, {others[0]} first")
    return loaded


def sharded_model(chunks: list[Any]) -> dict[str, Any]:
    """Chunk -> name of a weight -> what of the stored tensor belongs there, and the memory of the weight to read it into."""
    parts: dict[str, Any] = {}
    for index, chunk in enumerate(chunks):
        sharded = unwrapped(chunk).sharded_state_dict(metadata=dict(SHARDING))
        # Transformer Engine adds objects that hold FP8 scales only; without them both specs store the same names. Scales that a run
        # needs to go on are stored as tensors (`fp8_scales`).
        parts[f"model{index}"] = {key: value for key, value in sharded.items() if not key.endswith("_extra_state")}
    return parts


def sharded_state(chunks: list[Any], optimizer: Any, is_loading: bool) -> dict[str, Any]:
    """All tensors of weights and optimizer under the names they are stored by, as Megatron-core saves and loads them; to save, scales
    of FP8's delayed scaling too."""
    model = sharded_model(chunks)
    state = {**model, "optimizer": optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=dict(SHARDING))}
    scales = {} if is_loading else scales_to_store(_models(chunks), SHARDING)
    return {**state, "fp8": scales} if scales else state


def fill_chunks(chunks: list[Any], loaded: dict[str, Any]) -> None:
    """Copy what was loaded into the weights, where it does not lie there already."""
    for index, chunk in enumerate(chunks):
        _, unexpected = unwrapped(chunk).load_state_dict(loaded[f"model{index}"], strict=False)
        if unexpected:
            raise CheckpointError(f"the checkpoint holds weights this model has not: {unexpected}")


def _models(chunks: list[Any]) -> list[Any]:
    return [unwrapped(chunk) for chunk in chunks]


def unwrapped(chunk: Any) -> Any:
    """The module inside Megatron's wrappers: its names do not change with the wrapping."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def _check_fits(checkpoint: Path, stored: RunConfig, config: RunConfig) -> None:
    check_same(checkpoint, stored, config)
    for key, was, now in (
        ("train.precision", stored.train.precision, config.train.precision),
        ("parallel.use_distributed_optimizer", stored.parallel.use_distributed_optimizer, config.parallel.use_distributed_optimizer),
        ("train.global_batch_size", stored.train.global_batch_size, config.train.global_batch_size),
        ("train.rampup_batch_size", stored.train.rampup_batch_size, config.train.rampup_batch_size),
    ):
        if was != now:
            raise CheckpointError(
                f"checkpoint {checkpoint} was written with {key}={was}, now {now}. Set it back, or give another train.run_dir."
            )


def check_same(checkpoint: Path, stored: RunConfig, config: RunConfig, may_differ: Collection[str] = ()) -> None:
    """The settings that decide what the tensors mean must agree, all but `may_differ`; a default spelled out is no difference."""
    for key, was in _meaning(stored).items():
        now = _meaning(config)[key]
        if was != now and key not in may_differ:
            raise CheckpointError(
                f"checkpoint {checkpoint} has {key}={was}, the run has {now}. Set it back, or give another train.run_dir."
            )


def _meaning(config: RunConfig) -> dict[str, Any]:
    model, tokenizer = config.model, config.tokenizer
    return {
        **{f"model.{name}": value for name, value in model if name not in ANY_VALUE},
        "model.num_query_groups": model.query_groups,
        "model.max_position_embeddings": config.max_positions if model.position_embedding_type == "learned_absolute" else None,
        "model.kv_channels": model.head_dim,
        **{f"tokenizer.{name}": getattr(tokenizer, name) for name in ("kind", "base_order", "add_bos", "add_eos")},
        "tokenizer.k": tokenizer.k if tokenizer.kind == "kmer" else None,
    }


def changed_settings(stored: Section, config: Section, prefix: str = "") -> list[str]:
    """What a resumed run does otherwise, as `optim.lr 0.001 -> 0.0005`; not where it stops, how often it saves and what it logs."""
    said: list[str] = []
    for name, was in stored:
        now, key = getattr(config, name), f"{prefix}{name}"
        if key in UNSAID or was == now:
            continue
        if isinstance(was, Section) and isinstance(now, Section):
            said += changed_settings(was, now, f"{key}.")
        else:
            said.append(f"{key} {was} -> {now}" if len(f"{was}{now}") <= UNSAID_LENGTH else key)
    return said


def verify_files(checkpoint: Path, state: dict[str, Any], platform: Platform) -> None:
    """Raise CheckpointError on every rank unless all files are as they were written; the work is shared out over the ranks."""
    problem = damaged_file(checkpoint, state, platform.rank, platform.world_size)
    if problems := problems_of_ranks(problem):
        raise DamagedCheckpointError(f"checkpoint {checkpoint} is damaged: {problems[0]}. Use the one before it, or a copy.")
