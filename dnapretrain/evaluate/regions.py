"""Held-out bits per base by class of bases (data.regions): the bits of a token are split evenly over its bases.

So the classes of a grouping, weighted by their bases, add up to the set's `bits_per_base`, for every tokenizer, and a model that is uniform
over bases reads 2 in each. Where inside a k-mer or a byte pair the model was surprised, nobody can tell: near borders classes blend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from dnapretrain.data.sampling.samples import RegionClasses

SUMS = 3
"""Sums of each class."""
Regions = dict[str, dict[str, dict[str, float]]]
"""Grouping -> class -> bits_per_base, num_bases, weight."""


def num_region_sums(regions: RegionClasses | None) -> int:
    """How many numbers `region_sums` gives."""
    return SUMS * regions.num_classes if regions else 0


def region_sums(
    regions: RegionClasses | None,
    sample_ids: np.ndarray,
    first_tokens_B: torch.Tensor | None,
    labels_BK: torch.Tensor,
    losses_BS: torch.Tensor,
    loss_mask_BS: torch.Tensor,
    loss: str,
    places_S: np.ndarray | None = None,
) -> torch.Tensor:
    """Of each class: nats of the loss by weight, bases by weight, bases of targets; float64 [SUMS x classes], nothing without `regions`.

    `first_tokens_B`: of the causal objective, the token that is read before the labels; None: masked objective. `loss` is train.loss.
    Labels are those of whole samples, losses and their weights those of the tokens `places_S` (default: all).
    """
    if regions is None:
        return torch.zeros(0, dtype=torch.float64, device=losses_BS.device)
    tokens_BK = labels_BK if first_tokens_B is None else torch.cat([first_tokens_B[:, None], labels_BK], dim=1)
    counted = regions.counts(sample_ids, tokens_BK.cpu().numpy())[:, tokens_BK.shape[1] - labels_BK.shape[1] :]
    counted = counted if places_S is None else counted[:, places_S]
    counts_BSC = torch.from_numpy(np.ascontiguousarray(counted)).to(losses_BS.device).double()
    bases_BS = counts_BSC.sum(dim=-1) / len(regions.groupings)  # of the token: each grouping has all of them
    weights_BS = loss_mask_BS.double()
    of_base_BS = losses_BS.double() / (1 if loss == "nucleotide" else bases_BS.clamp(min=1))
    per_base = (of_base_BS * weights_BS, weights_BS, (loss_mask_BS > 0).double())
    return torch.cat([torch.einsum("bs,bsc->c", values_BS, counts_BSC) for values_BS in per_base])


def summarise_regions(regions: RegionClasses | None, sums: list[float]) -> Regions | None:
    """What the sums of all ranks say, grouping by grouping; classes without a target are left out. None without `regions`."""
    if regions is None:
        return None
    nats, weights, bases = (sums[number * regions.num_classes :][: regions.num_classes] for number in range(SUMS))
    found: Regions = {}
    at = 0
    for grouping, classes in regions.groupings.items():
        found[grouping] = {
            name: {
                "bits_per_base": nats[index] / weights[index] * math.log2(math.e),
                "num_bases": int(bases[index]),
                "weight": weights[index],
            }
            for index, name in enumerate(classes, at)
            if weights[index] > 0
        }
        at += len(classes)
    return found


def region_lines(regions: Regions | None) -> Iterator[str]:
    """A short table: one line for each grouping, its classes with bits per base and their share of the weight."""
    width = max((len(grouping) for grouping in regions or ()), default=0)
    for grouping, classes in (regions or {}).items():
        total = sum(values["weight"] for values in classes.values())
        cells = [f"{name} {values['bits_per_base']:.4f} ({values['weight'] / total:.1%})" for name, values in classes.items()]
        yield f"  {grouping:>{width}} | {' | '.join(cells)}"
