"""Transformer Engine's attention over context-parallel ranks, in its own Python on CPU ranks: what it holds. The fused kernels give tensors
of the right shapes and nothing else, as for memory alone. To be imported where `te_on_cpu` has been."""

from __future__ import annotations

from typing import Any

import torch
from alive_bytes import Alive

TOKENS, BATCH, HEADS, GROUPS, WIDTH = 64, 2, 8, 4, 16
"""Tokens of a rank; key/value heads."""


def fused_forward(_training: Any, *arguments: Any, **_: Any) -> Any:
    query = arguments[4]
    tokens, batch, heads, _ = query.shape
    return torch.empty_like(query), [torch.zeros(batch, heads, tokens, 1), torch.zeros(2)]


def fused_backward(*arguments: Any, **_: Any) -> Any:
    return (*(torch.empty_like(tensor) for tensor in arguments[4:7]), None)


def in_place(out: Any, of_step: Any, *_: Any) -> None:
    """A step's result added without a tensor in between, as by the compiled function on GPU."""
    (out if out.numel() == of_step.numel() else out[1]).view_as(of_step).add_(of_step)


def ring(_rank: Any, sent: Any, _to: Any, received: Any, *_: Any) -> list[Any]:
    """A step of the ring: what is there counts, not what it says."""
    received.copy_(sent)
    return []


def held(env: Any, store: Any, tree: dict[str, Any], ways: list[tuple[str, bool]]) -> list[tuple[int, int, int]]:
    """For each (cp_comm_type, is causal): values per token of this rank that are kept between forward and backward pass, the result
    among them; and the most that each pass has beside these."""
    import transformer_engine.pytorch.attention.dot_product_attention.context_parallel as te

    from dnapretrain.config_file import config_from_dict
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    start_groups(platforms.start("cpu", env), config_from_dict(tree).parallel, 1, store)
    te.fused_attn_fwd, te.fused_attn_bwd, te.flash_attn_p2p_communicate = fused_forward, fused_backward, ring
    te.flash_attn_fwd_out_correction_init = lambda first, *_: first.clone()
    te.flash_attn_fwd_out_correction = te.flash_attn_fwd_second_half_out_correction = in_place
    te.get_device_compute_capability, te.is_graph_capturing = (lambda: (9, 0)), (lambda: False)
    te.get_distributed_world_size.cache_clear()  # its groups are those of earlier tests
    te.get_distributed_rank.cache_clear()
    return [_held(te, env, way, is_causal) for way, is_causal in ways]


def _held(te: Any, env: Any, way: str, is_causal: bool) -> tuple[int, int, int]:
    from megatron.core.parallel_state import get_context_parallel_group

    def given(heads: int) -> torch.Tensor:
        return torch.zeros(TOKENS, BATCH, heads, WIDTH, dtype=torch.bfloat16, requires_grad=True)

    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    whole, alive = TOKENS * env.world_size, Alive()
    lengths = torch.arange(BATCH + 1, dtype=torch.int32) * whole
    query, key, value = given(HEADS), given(GROUPS), given(GROUPS)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), alive:
        result = te.attn_forward_func_with_cp(
            *(True, query * 1, key * 1, value * 1, lengths, lengths, whole, whole, None, None, 0.0),
            *(get_context_parallel_group(), list(range(env.world_size)), torch.cuda.Stream(), way),
            qkv_format="sbhd",
            attn_mask_type="causal" if is_causal else "no_mask",
            use_fused_attention=True,
        )
    kept[result.untyped_storage().data_ptr()] = result.untyped_storage()
    num_kept = sum(storage.nbytes() for storage in kept.values())
    most_forward = alive.most
    kept.clear()
    with alive:
        alive.most = alive.now
        result.backward(torch.zeros_like(result))
    per_token = 2 * TOKENS * BATCH
    return tuple(round(num / per_token) for num in (num_kept, most_forward - num_kept, alive.most - num_kept))  # type: ignore[return-value]
