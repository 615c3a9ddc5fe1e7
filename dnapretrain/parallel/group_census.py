"""The process groups that a rank builds, counted while they are built: how many, of how many ranks, in how long.

Every rank calls for every group of the job, its own and those of others, in the same order: that is what grows with the job.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class BuiltGroup:
    """One call for a group."""

    name: str
    """Megatron's name of its kind; '' for none."""
    ranks: tuple[int, ...]
    seconds: float


@contextmanager
def count_groups() -> Iterator[list[BuiltGroup]]:
    """The groups that are built within the body, in order."""
    built: list[BuiltGroup] = []
    torch_groups: Any = dist
    new_group = torch_groups.new_group

    def counted(ranks: Any = None, *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        group = new_group(ranks, *arguments, **options)
        members = tuple(ranks) if ranks is not None else tuple(range(dist.get_world_size()))
        built.append(BuiltGroup(options.get("group_desc") or "", members, time.perf_counter() - started))
        return group

    torch_groups.new_group = counted
    try:
        yield built
    finally:
        torch_groups.new_group = new_group


def census(built: list[BuiltGroup], rank: int) -> list[dict[str, Any]]:
    """Of each kind of group: how many the job has, and the ranks of the one that `rank` is in (none: [])."""
    rows: dict[str, dict[str, Any]] = {}
    for group in built:
        row = rows.setdefault(group.name, {"name": group.name, "groups": 0, "seconds": 0.0, "ranks": []})
        row["groups"] += 1
        row["seconds"] += group.seconds
        if rank in group.ranks:
            row["ranks"] = list(group.ranks)
    return list(rows.values())
