"""The manifest of a base shard, as preprocess and merge write it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from dnapretrain import __version__
from dnapretrain.data.shards.shard import FORMAT, FORMAT_VERSION


def base_manifest(
    cleaning: dict[str, Any],
    sources: Sequence[dict[str, Any]],
    skipped: Sequence[dict[str, Any]],
    longest_shortest: tuple[int, int],
    files: dict[str, Any],
) -> dict[str, Any]:
    """All keys in their order; the counts are those of the sources together."""
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "content": "bases",
        "cleaning": cleaning,
        "counts": sum_counts(source["counts"] for source in sources),
        "longest_document": longest_shortest[0],
        "shortest_document": longest_shortest[1],
        "files": files,
        "sources": list(sources),
    }
    if skipped:
        manifest["skipped"] = list(skipped)
    return manifest


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """As it is written."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()


def sum_counts(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Key by key, sections too."""
    columns = list(counts)
    return {
        key: sum_counts(column[key] for column in columns) if isinstance(first, dict) else sum(column[key] for column in columns)
        for key, first in columns[0].items()
    }
