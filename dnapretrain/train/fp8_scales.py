"""Scales of FP8's delayed scaling in checkpoints, as plain tensors: Transformer Engine's own state of a module is a pickle.

Its linear modules keep in `fp8_meta` (module/base.py of 2.11), for the forward pass (input, weight, result) and the backward pass
(gradients of both), `scale` and `amax_history` [steps, tensors], whose first row gathers the next largest values. Megatron-core reduces
these over all ranks that share a pipeline stage (fp8_utils.get_fp8_context: the group of tensor-, data- and context-parallel ranks;
FP8GlobalStateManager.reduce_and_update_fp8_tensors), so each rank of a stage has the same numbers, whatever the layout: they are stored
once for each module, under its name in the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.utils import make_sharded_tensor_for_checkpoint

from dnapretrain.convert.native import FP8_PREFIX, WeightsReader

PASSES = {"forward": "scaling_fwd", "backward": "scaling_bwd"}
"""Name in a checkpoint -> key of `fp8_meta`."""
_OWN_STATE = "._extra_state"


def scales_to_store(models: list[Any], metadata: dict[str, Any]) -> dict[str, ShardedTensor]:
    """Copies of all scales and histories of `models` (unwrapped chunks) by their stored names; empty without delayed scaling. Called by
    all ranks together."""
    found = {}
    for name, module in _modules(models, metadata) if has_scales(models) else ():
        for passing, key in PASSES.items():
            state = module.fp8_meta.get(key)
            if hasattr(state, "amax_history"):
                stem = f"{FP8_PREFIX}{name}.{passing}"
                found[f"{stem}.scale"] = state.scale.detach().clone()
                found[f"{stem}.amax_history"] = _reduced(state.amax_history.detach().clone(), module.fp8_meta.get("fp8_group"))
    return {name: make_sharded_tensor_for_checkpoint(tensor, name) for name, tensor in found.items()}


def scales_to_read(models: list[Any], metadata: dict[str, Any], reader: WeightsReader) -> dict[str, ShardedTensor]:
    """What of a checkpoint's scales belongs to `models`, and memory on the CPU to read it into; empty where it holds none."""
    stored, found = {name for name in reader.names() if name.startswith(FP8_PREFIX)}, {}
    for name, _ in _modules(models, metadata) if stored else ():
        for passing in PASSES:
            for what in ("scale", "amax_history"):
                key = f"{FP8_PREFIX}{name}.{passing}.{what}"
                if key in stored:
                    found[key] = make_sharded_tensor_for_checkpoint(torch.empty(reader.shape(key), dtype=reader.dtype(key)), key)
    return found


def fill_scales(models: list[Any], metadata: dict[str, Any], loaded: dict[str, torch.Tensor]) -> None:
    """Put scales that were read into the modules they belong to, which need not have run yet. A history of another length is cut or
    filled up with zeros, as Transformer Engine does it."""
    from megatron.core.fp8_utils import get_fp8_recipe

    for name, module in _modules(models, metadata) if loaded else ():
        stem = f"{FP8_PREFIX}{name}"
        if f"{stem}.forward.scale" not in loaded:
            continue
        module.fp8_meta["num_gemms"] = len(loaded[f"{stem}.forward.scale"]) // 3
        module.init_fp8_meta_tensors(get_fp8_recipe(models[0].config))  # what its first forward pass would do; then it does not
        for passing, key in PASSES.items():
            state, history = module.fp8_meta[key], loaded[f"{stem}.{passing}.amax_history"]
            rows = min(len(history), len(state.amax_history))
            state.scale.copy_(loaded[f"{stem}.{passing}.scale"])
            state.amax_history.zero_()[:rows].copy_(history[:rows])


def has_scales(models: list[Any]) -> bool:
    """Whether any module has a history of delayed scaling: before the first step, whether one was read."""
    metas = (getattr(module, "fp8_meta", {}) for model in models for module in model.modules())
    return any(hasattr(meta.get(key), "amax_history") for meta in metas for key in PASSES.values())


def _modules(models: list[Any], metadata: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name in the whole model, module) of each linear module of Transformer Engine."""
    for model in models:
        if not any(hasattr(module, "fp8_meta") for module in model.modules()):
            continue
        for key, entry in model.sharded_state_dict(metadata=dict(metadata)).items():
            if not key.endswith(_OWN_STATE):
                continue
            module = model.get_submodule(key.removesuffix(_OWN_STATE))
            if hasattr(module, "fp8_meta") and any(True for _ in module.parameters(recurse=False)):  # attention has none
                yield entry.key.removesuffix(_OWN_STATE), module


def _reduced(history: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """`history`, its first row the largest of all ranks: an evaluation leaves there what each rank saw, to be reduced in the next step."""
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(history[0], dist.ReduceOp.MAX, group)
    return history
