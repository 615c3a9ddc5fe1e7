"""Cluster files: stretches of contigs, those that hold homologous bases in one cluster; and which clusters are held out.

`dnapretrain cluster` writes them (audit/cluster.py). The first line is `#dnapretrain-clusters`, a tab and JSON (format version, settings,
digests of the shards, counts); then BED lines: contig, start, end, number of the cluster, 0, `.`, assembly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain.data.shards.shard import Shard
from dnapretrain.errors import ConfigError, DataError

MAGIC = "#dnapretrain-clusters"
FORMAT_VERSION = 1
UINT64 = (1 << 64) - 1

Intervals = list[tuple[int, int, int]]
"""Start, end and a number: of a cluster, or of a side."""


@dataclass(frozen=True)
class Clusters:
    """A cluster file."""

    path: Path
    header: dict[str, Any]
    intervals: dict[tuple[str, str], Intervals]
    """By (assembly, contig): start, end, cluster; sorted, apart."""
    count: int
    """Clusters; they are numbered from 1."""

    def check(self, shards: Sequence[Shard]) -> None:
        """Raises ConfigError for a shard that the file was not made for."""
        known = {shard["xxh3_128"] for shard in self.header["shards"]}
        for shard in shards:
            if shard.digest not in known:
                raise ConfigError(
                    f"data.split.clusters = {self.path} was not made for shard {shard.prefix} as it is now (XXH3-128 {shard.digest}). "
                    "Run dnapretrain cluster again, on all shards of data.train"
                )


def read_clusters(path: Path) -> Clusters:
    """Read a cluster file. Raises ConfigError where it cannot be read, is none, or is damaged."""
    try:
        with path.open(encoding="utf-8") as file:
            magic, _, header = file.readline().partition("\t")
            if magic != MAGIC:
                raise ConfigError(f"{path} is not a cluster file: its first line does not begin with {MAGIC}. Run dnapretrain cluster")
            parsed = json.loads(header)
            if parsed["format_version"] != FORMAT_VERSION:
                raise ConfigError(f"{path}: cluster format {parsed['format_version']}, this version reads {FORMAT_VERSION}. Make it again")
            intervals: dict[tuple[str, str], Intervals] = {}
            rows = 0
            for line in file:
                contig, start, end, cluster, _, _, assembly = line.rstrip("\n").split("\t")
                intervals.setdefault((assembly, contig), []).append((int(start), int(end), int(cluster)))
                rows += 1
        damaged = rows != parsed["pieces"] or not all(_is_sound(some, parsed["clusters"]) for some in intervals.values())
        if damaged or not all(isinstance(shard["xxh3_128"], str) for shard in parsed["shards"]):
            raise ValueError
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cluster file {path} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: cut or damaged. Run dnapretrain cluster again") from None
    return Clusters(path, parsed, intervals, int(parsed["clusters"]))


def _is_sound(intervals: Intervals, clusters: int) -> bool:
    at = 0
    for start, end, cluster in intervals:
        if not (at <= start < end and 1 <= cluster <= clusters):
            return False
        at = end
    return True


def cluster_lines(header: dict[str, Any], rows: Iterable[tuple[str, int, int, int, str]]) -> Iterable[str]:
    """Lines of a cluster file, from contig, start, end, cluster, assembly."""
    yield f"{MAGIC}\t{json.dumps({'format_version': FORMAT_VERSION, **header})}\n"
    for contig, start, end, cluster, assembly in rows:
        yield f"{contig}\t{start}\t{end}\t{cluster}\t0\t.\t{assembly}\n"


def choose_clusters(bases: NDArray[np.int64], fractions: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Side of each cluster, by its bases: 0 for training, n for the n-th of `fractions`.

    Clusters come in the order of a keyed hash; each goes to the first side that has room for it, else to training. So a side never has
    more than its fraction, and it lacks less than the smallest cluster that is left to training.
    """
    order = sorted(range(len(bases)), key=lambda number: (xxhash.xxh64_intdigest(str(number + 1).encode(), seed & UINT64), number))
    room = [int(bases.sum() * fraction) for fraction in fractions]
    sides = np.zeros(len(bases), np.int64)
    for number in order:
        size = int(bases[number])
        for side in range(len(room)):
            if 0 < size <= room[side]:
                room[side] -= size
                sides[number] = side + 1
                break
    return sides


def missing_piece(clusters: Clusters, locus: str) -> DataError:
    """What to raise for a base that is in no piece."""
    return DataError(
        f"{locus} holds bases that are in no piece of {clusters.path}: it was made for other shards. Run dnapretrain cluster again"
    )
