"""Nucleotide Transformer's zero-shot scores: how far apart the embeddings of the reference and the alternative window are.

cosine: 1 - cosine similarity; l1, l2; dot: the dot product itself, which is large where vectors are alike. Vectors are means over all
tokens of bases (`mean`), or over those that lie over the variant (`token`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnapretrain.adapt.backbones.backbone import Backbone
from dnapretrain.adapt.backbones.encoding import Encoded
from dnapretrain.adapt.variants.variant_sites import Site
from dnapretrain.adapt.variants.variant_windows import Windows, all_phases, token_starts, tokens_over, windows, word_bases

METRICS = ("cosine", "l1", "l2", "dot")
POOLINGS = ("mean", "token")


def distance_windows(backbone: Backbone, site: Site, size: int) -> Windows | None:
    """The windows that are compared; None where the contig or `size` leaves no room."""
    word = word_bases(backbone.encoder.tokenizer)
    return windows(site, size, word, all_phases(word, word // 2 if backbone.is_encoder else 0))


def embedding_distances(backbone: Backbone, pairs: Sequence[Windows], layers: Sequence[int], tokens_per_batch: int) -> NDArray[np.float64]:
    """[N, L, 2, 4]: by pair, layer, POOLINGS and METRICS. Equal windows are read once."""
    wanted = dict.fromkeys(window for pair in pairs for window in (pair.ref, pair.alt))
    number_of = {window: number for number, window in enumerate(wanted)}
    encoded: list[Encoded] = []
    for number, window in enumerate(wanted):
        encoded += backbone.encoder.encode(window.text, number)
    list_of = list(wanted)
    vectors = torch.zeros(len(wanted), len(layers), len(POOLINGS), backbone.hidden_size)
    for batch in backbone.encoder.batches(encoded, tokens_per_batch):
        over_BS = torch.zeros_like(batch.bases_mask)
        for row, number in enumerate(batch.rows.tolist()):
            ids = batch.input_ids[row][batch.bases_mask[row]].numpy()
            starts = token_starts(backbone.encoder.tokenizer, ids)
            over = tokens_over(starts, list_of[number].start, list_of[number].end)
            first = backbone.encoder.specials[0]
            over_BS[row, first + over.start : first + over.stop] = True
        for layer, states_BSH in enumerate(backbone.hidden_states(batch, layers)):
            for place, mask_BS in enumerate((batch.bases_mask, over_BS)):
                vectors[torch.from_numpy(batch.rows), layer, place] = _mean(states_BSH.float(), mask_BS).cpu()
    refs, alts = (vectors[[number_of[getattr(pair, side)] for pair in pairs]].double() for side in ("ref", "alt"))
    return _distances(refs, alts).numpy()


def _mean(states_BSH: Tensor, mask_BS: Tensor) -> Tensor:
    mask_BS = mask_BS.to(states_BSH.device)
    return states_BSH.masked_fill(~mask_BS[..., None], 0).sum(dim=1) / mask_BS.sum(dim=1, keepdim=True)


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Over the last axis, METRICS behind each other."""
    cosine = 1 - torch.nn.functional.cosine_similarity(one, other, dim=-1)
    between = one - other
    return torch.stack([cosine, between.abs().sum(dim=-1), between.norm(dim=-1), (one * other).sum(dim=-1)], dim=-1)
