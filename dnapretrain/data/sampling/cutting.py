"""The rules that samples are cut by.

Windows are cut in bases. Where tokens stand for different numbers of bases (Tokenizer.is_variable), a window has as many bases as
its tokens would have as whole words, a last window may end anywhere, and bases that the tokens do not reach are cut and counted.

With data.window_jitter J, training windows of W bases are cut from stretches of W + J bases that begin `stride` apart, each at a keyed
offset of 0 to J, another one in each epoch. The last stretch of a segment may be shorter, if it has min_length bases and one
that no other stretch has; its offset runs over what room there is (none, where it is no longer than a window). So no window reads
beyond its segment, and every base that the report calls used is read in some epoch, though not in each.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.config import DataConfig
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.tokens.tokenizers import Tokenizer


def cut_rules(data: DataConfig, tokenizer: Tokenizer, training: bool) -> dict[str, Any]:
    """The rules that samples of a set are cut by, as `SampleIndex` takes them; `training`: those of the training set."""
    masked = data.masking.mlm_probability > 0
    label_tokens = data.sequence_length - (tokenizer.add_bos + tokenizer.add_eos if masked else 0)
    k = tokenizer.bases_per_token
    context = 0 if masked or tokenizer.add_bos else k  # bases
    touching = data.window_length - context if data.window_length else label_tokens * k
    return {
        "packed": data.sampling == "packed",
        "shuffle": training,
        "add_bos": tokenizer.add_bos,
        "random_phase": data.random_phase and training,
        "sequence_length": data.sequence_length,
        "k": k,
        "stride": (data.stride if training else None) or touching,
        "min_length": data.min_length,
        "reverse_complement": data.reverse_complement if training else 0.0,
        # Absent at their defaults: the digests of such streams are older than these rules.
        **({"masked": True} if masked else {}),
        **({"add_eos": True} if tokenizer.add_eos else {}),
        **({"variable": True} if tokenizer.is_variable else {}),
        **({"window": data.window_length} if data.window_length else {}),
        **({"jitter": data.window_jitter} if data.window_jitter and training else {}),
    }


def contig_groups(source: Source) -> NDArray[np.int64]:
    """The first segment of each group: consecutive segments of one contig, of one haplotype where there are several."""
    coordinates = source.shard.coordinates
    names = zip(coordinates.assembly, coordinates.contig, coordinates.haplotype or itertools.repeat(""), strict=False)
    changes = np.fromiter((left != right for left, right in itertools.pairwise(names)), np.bool_)
    contig = np.concatenate([[0], np.cumsum(changes)])[source.segments.document]
    return np.concatenate([[0], np.flatnonzero(np.diff(contig)) + 1]).astype(np.int64)
