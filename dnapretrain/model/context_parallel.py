"""Attention over sequences that are spread over context-parallel ranks: exact, by torch, for every mask that the torch path has.

Each sample is cut into 2 cp equal parts; rank r holds parts r and 2 cp - 1 - r, behind each other. That is Megatron-core's order and
Transformer Engine's: a causal model computes as much on each rank. Keys and values of all ranks are gathered for each layer, in the
order of the sequence; their gradients are summed and scattered. Gathered ones are not kept for the backward pass but gathered once
more, so a rank keeps no more of a layer than its own part of the sequence.

Shape suffixes: B batch, N heads and G key/value heads on this rank, D head width, S tokens of a sample, P those on this rank (S / cp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Attention on one rank: (queries [B, N, Q, D], keys and values [B, N or G, K, D], mask) -> [B, N, Q, D]. Without a mask a causal one
takes the last query for that of the last key."""


def own_part(of_sample: torch.Tensor, rank: int, size: int, dim: int = 1) -> torch.Tensor:
    """What rank `rank` of `size` holds of a tensor whose axis `dim` is S: a copy with P there; the tensor itself for one rank."""
    if size == 1:
        return of_sample
    parts = of_sample.chunk(2 * size, dim=dim)
    return torch.cat([parts[rank], parts[2 * size - 1 - rank]], dim=dim)


def attend_over_ranks(
    attend: Attend,
    query_BNPD: torch.Tensor,
    key_BGPD: torch.Tensor,
    value_BGPD: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    group: dist.ProcessGroup,
    repeats: int = 1,
) -> torch.Tensor:
    """Attention's result [B, N, P, D] for the queries of this rank over keys and values of all ranks of `group`.

    `mask` [..., P or 1, S] has the rows of these queries and columns in the order of the sequence. A causal model is given the keys
    that each half of its queries can see, and no others. `repeats`: each key and value is seen so many times, as heads in a row.
    """
    whole = _KeysAndValues(key_BGPD, value_BGPD, group, repeats)
    key, value = _Gather.apply(key_BGPD, value_BGPD, whole)
    with torch.autograd.graph.saved_tensors_hooks(whole.pack, whole.unpack):
        if is_causal:
            halves = [
                attend(query, key[:, :, :seen], value[:, :, :seen], None if mask is None else _rows(mask, half)[..., :seen])
                for half, (query, seen) in enumerate(zip(query_BNPD.chunk(2, dim=2), _seen_by_halves(key.shape[2], group), strict=True))
            ]
            context = torch.cat(halves, dim=2)
        else:
            context = attend(query_BNPD, key, value, mask)
    if context.requires_grad:
        # Here rather than in `unpack`: ranks must gather at the same time, whatever kernel each of them took.
        context.register_hook(whole.gather_again)
    return context


def _seen_by_halves(sequence: int, group: dist.ProcessGroup) -> tuple[int, int]:
    """How many keys the last query of each part of this rank sees."""
    part = sequence // (2 * group.size())
    return (group.rank() + 1) * part, (2 * group.size() - group.rank()) * part


def _rows(mask: torch.Tensor, half: int) -> torch.Tensor:
    return mask if mask.shape[-2] == 1 else mask.chunk(2, dim=-2)[half]


class _KeysAndValues:
    """Keys and values of all ranks, of one layer and micro-batch. They are there while attention works, and once more while its
    gradients are computed; in between only those of this rank are kept."""

    def __init__(self, key_BGPD: torch.Tensor, value_BGPD: torch.Tensor, group: dist.ProcessGroup, repeats: int) -> None:
        self.own = (key_BGPD.detach(), value_BGPD.detach())
        self.group, self.repeats = group, repeats
        self.whole: tuple[torch.Tensor, torch.Tensor] | None = None
        self._addresses: dict[int, int] = {}

    def gather(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both [B, G x repeats, S, D], views of memory in the order [S, B, G x repeats, D]."""
        own_2PBGD = torch.stack([tensor.permute(2, 0, 1, 3) for tensor in self.own])
        gathered = own_2PBGD.new_empty(2 * self.group.size(), *own_2PBGD.shape[1:])
        dist.all_gather_into_tensor(gathered, own_2PBGD, group=self.group)
        key, value = (in_order(gathered[number::2]) for number in range(2))
        if self.repeats > 1:
            key, value = (tensor.repeat_interleave(self.repeats, dim=2) for tensor in (key, value))
        return key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)

    def remember(self, whole: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Know these tensors again when autograd keeps them, or slices of them."""
        self._addresses = {tensor.untyped_storage().data_ptr(): number for number, tensor in enumerate(whole)}

    def gather_again(self, _: torch.Tensor) -> None:
        """Before the gradients of attention are computed: what `unpack` takes from."""
        self.whole = self.gather()

    def reduce(self, of_key_BGSD: torch.Tensor, of_value_BGSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients [B, G, P, D] of this rank's keys and values: summed over ranks, and over repeats."""
        self.whole = None
        both = []
        for gradient in (of_key_BGSD, of_value_BGSD):
            gradient = gradient.permute(2, 0, 1, 3)
            if self.repeats > 1:
                gradient = gradient.unflatten(2, (-1, self.repeats)).sum(dim=3)
            both.append(by_ranks(gradient, self.group.size()))
        of_ranks = torch.stack(both, dim=1).flatten(0, 1)
        own_2PBGD = torch.empty_like(of_ranks[:2])
        dist.reduce_scatter_tensor(own_2PBGD, of_ranks, group=self.group)
        of_key, of_value = own_2PBGD.permute(0, 2, 3, 1, 4)
        return of_key, of_value

    def pack(self, tensor: torch.Tensor) -> Any:
        """What autograd keeps of a tensor: of gathered keys and values only where in them it lies."""
        number = self._addresses.get(tensor.untyped_storage().data_ptr())
        return tensor if number is None else (number, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(self, packed: Any) -> torch.Tensor:
        """The tensor that `pack` was given."""
        if isinstance(packed, torch.Tensor):
            return packed
        assert self.whole is not None, "gathered before the gradients of attention's result went on"
        number, *place = packed
        return self.whole[number].as_strided(*place)


class _Gather(torch.autograd.Function):
    """Keys and values of this rank to those of all ranks; backward the sums of all ranks' gradients, each rank its own part."""

    @staticmethod
    def forward(ctx: Any, key: torch.Tensor, value: torch.Tensor, whole: _KeysAndValues) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.whole = whole
        gathered = whole.gather()
        whole.remember(gathered)
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_key, of_value = ctx.whole.reduce(*gradients)
        return of_key, of_value, None


def in_order(of_ranks: torch.Tensor) -> torch.Tensor:
    """[S, ...] in the order of the sequence, from what each rank holds, [cp, P, ...]."""
    first, second = of_ranks.unflatten(1, (2, -1)).unbind(1)
    return torch.cat([first.flatten(0, 1), second.flip(0).flatten(0, 1)])


def by_ranks(in_sequence: torch.Tensor, size: int) -> torch.Tensor:
    """What each rank holds, [cp, P, ...], of a tensor in the order of the sequence [S, ...]."""
    first, second = in_sequence.unflatten(0, (2, size, -1))
    return torch.cat([first, second.flip(0)], dim=1)
