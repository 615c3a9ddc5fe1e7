"""Folds that do not leak: a sequence and its copies, on either strand, are on one side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.errors import DataError


def same_sequence_groups(sequences: Sequence[str]) -> NDArray[np.int64]:
    """A number per sequence, the same for equal ones and reverse complements; in order of first appearance."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(_canonical(sequence), len(known)) for sequence in sequences], np.int64)


def _canonical(sequence: str) -> bytes:
    return xxhash.xxh3_128_digest(min(sequence, reverse_complement_text(sequence)).encode("ascii"))


def shared_rows(sequences: Sequence[str], others: Sequence[str]) -> NDArray[np.int64]:
    """Numbers of those `sequences` that are also among `others`, on either strand."""
    there = {_canonical(sequence) for sequence in others}
    return np.array([row for row, sequence in enumerate(sequences) if _canonical(sequence) in there], np.int64)


def deal_folds(
    groups_N: NDArray[np.int64], num_folds: int, seed: int = 0, classes_N: NDArray[np.integer[Any]] | None = None
) -> NDArray[np.int64]:
    """The fold of each row, 0 to num_folds - 1: groups stay whole, folds and the classes in them are as even as groups allow.

    Groups are dealt in an order drawn from `seed`, the largest first, each to the fold that has fewest rows of its (commonest) class,
    then fewest rows. Raises DataError where there are fewer groups than folds, or a class has fewer than two.
    """
    classes = np.zeros(len(groups_N), np.int64) if classes_N is None else np.asarray(classes_N)
    num_classes = int(classes.max(initial=0)) + 1
    _, first, inverse, sizes = np.unique(groups_N, return_index=True, return_inverse=True, return_counts=True)
    if num_folds < 2 or len(first) < num_folds:
        raise DataError(f"{len(first)} different sequences cannot be dealt to {num_folds} folds. Use 2 folds or more, and fewer than rows.")
    of_class = np.zeros((len(first), num_classes), np.int64)
    np.add.at(of_class, (inverse, classes), 1)
    for number in range(num_classes):
        if 0 < (of_class[:, number] > 0).sum() < 2:
            raise DataError(
                f"class number {number} has a single sequence, and so no other fold to be learned from. Remove it, or find more."
            )
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(-sizes[order], kind="stable")]
    load = np.zeros((num_folds, num_classes), np.int64)
    fold_of_group = np.zeros(len(first), np.int64)
    for group in order.tolist():
        commonest = int(of_class[group].argmax())
        fold = min(range(num_folds), key=lambda fold: (load[fold, commonest], load[fold].sum()))
        fold_of_group[group] = fold
        load[fold] += of_class[group]
    return fold_of_group[inverse]
