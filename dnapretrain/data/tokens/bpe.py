"""Byte-pair encoding of DNA: merges as data (a Hugging Face tokenizer.json), the native encoder, and training on base shards.

Words are runs of A, C, G and T, as long as contigs; every other character is one [UNK] and ends a word. A vocabulary numbers
[UNK] [CLS] [SEP] [PAD] [MASK] 0 to 4, then A, C, G, T, then what the merges make, in their order, as DNABERT-2 does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__
from dnapretrain._core import MAX_TRAINED_BPE_TOKENS, BpeEncoder, BpeTrainer
from dnapretrain.config import BPE_BASES_PER_TOKEN
from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.data.shards.shard import Shard, open_shard
from dnapretrain.data.tokens.vocabularies import BPE_SPECIALS
from dnapretrain.errors import ConfigError, DataError

BASES = ("A", "C", "G", "T")
SPECIALS = BPE_SPECIALS
PIECE = 1 << 20
"""Bases of a piece, where pieces of documents are drawn."""
MERGES_AT_ONCE = 64
TRAINING_FORMAT = "dnapretrain-bpe-training"
PLAIN_MODEL = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges")
"""Options of the BPE model of the `tokenizers` library that must be off."""
UPPER_CASE = {
    "type": "Sequence",
    "normalizers": [{"type": "Replace", "pattern": {"String": base.lower()}, "content": base} for base in BASES],
}
"""The normalizer of exported tokenizers: lower-case bases read as upper case, as in training."""

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class BpeVocabulary:
    """Tokens and merges of one BPE tokenizer; `load_bpe` reads one, `train_bpe` learns one."""

    tokens: tuple[str, ...]
    """Text of each id."""
    merges: tuple[tuple[str, str], ...]
    """The two parts of each merge, by rank."""

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each text."""
        return {text: number for number, text in enumerate(self.tokens)}

    def encoder(self, *, k: int = BPE_BASES_PER_TOKEN, lowercase_weight: float = 1.0, upper_case: bool = True) -> BpeEncoder:
        """The native encoder; k: bases per token that windows reckon with. Raises DataError for merges that no training makes.

        upper_case=True reads lower case as upper case, with this loss weight; False makes it [UNK], as the `tokenizers` library does.
        """
        ids = self.ids
        merges = np.array([[ids[left], ids[right], ids[left + right]] for left, right in self.merges], np.int64).reshape(-1, 3)
        special = {name: ids[text] for name, text in (("unk", "[UNK]"), ("bos", "[CLS]"), ("eos", "[SEP]"), ("pad", "[PAD]"))}
        bases = [ids[base] for base in BASES]
        try:
            return BpeEncoder(merges=merges, base_ids=bases, k=k, lowercase_weight=lowercase_weight, upper_case=upper_case, **special)
        except ValueError as error:
            raise DataError(f"BPE merges cannot be used: {error}. Train a tokenizer with dnapretrain train-bpe") from None

    def to_json(self) -> dict[str, Any]:
        """The contents of a tokenizer.json that `tokenizers` and `transformers` load, laid out as DNABERT-2's."""
        ids = self.ids
        added = [
            {"id": ids[text], "special": True, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            for text in SPECIALS
        ]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": sorted(added, key=lambda token: token["id"]),
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": _post_processor(ids),
            "decoder": None,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "[UNK]",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "vocab": ids,
                "merges": [f"{left} {right}" for left, right in self.merges],
            },
        }

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json; it appears whole or not at all."""
        write_whole(Path(path), json.dumps(self.to_json(), indent=2) + "\n")


def load_bpe(path: str | Path) -> BpeVocabulary:
    """Read a tokenizer.json with a BPE model over A, C, G, T, or that of a checkpoint of ours, which holds one under `bpe`.

    Raises DataError where it is damaged or another kind of tokenizer.
    """
    try:
        contents = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not a tokenizer.json with a BPE model: damaged, or another kind of tokenizer") from None
    return bpe_of_json(contents.get("bpe", contents) if isinstance(contents, dict) else contents, str(path))


def bpe_of_json(contents: Any, path: str) -> BpeVocabulary:
    """What the contents of a tokenizer.json hold; `path` names it in messages. Raises DataError as `load_bpe` does."""
    try:
        model = contents["model"]
        vocab, merges = model["vocab"], [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        tokens = tuple(sorted(vocab, key=vocab.__getitem__))
        if not all(isinstance(text, str) for texts in (vocab, *merges) for text in texts):
            raise TypeError("a token is no text")
        _check_options(path, contents)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: not a tokenizer.json with a BPE model: damaged, or another kind of tokenizer") from None
    if [vocab[text] for text in tokens] != list(range(len(tokens))):
        raise DataError(f"{path}: the ids of its {len(tokens)} tokens are not 0 to {len(tokens) - 1}. Remove the gaps or the doubles")
    missing = [text for text in (*SPECIALS, *BASES) if text not in vocab]
    if missing:
        raise DataError(f"{path}: the vocabulary lacks {' '.join(missing)}. Name the special tokens {' '.join(SPECIALS)}")
    single = [text for text in tokens if len(text) == 1 and text not in BASES]
    if single:
        raise DataError(f"{path}: the vocabulary holds {single[0]!r}; single-letter tokens other than A, C, G and T are not supported")
    for rank, merge in enumerate(merges):
        if len(merge) != 2 or any(text not in vocab for text in (*merge, "".join(merge))):
            raise DataError(f"{path}: merge {rank} (from 0), {' + '.join(merge)}: not two tokens that make a third: damaged")
    return BpeVocabulary(tokens, tuple((left, right) for left, right in merges))


def _check_options(path: str, contents: dict[str, Any]) -> None:
    model = contents["model"]
    if model.get("type", "BPE") != "BPE" or model.get("unk_token") != "[UNK]":
        found = f"model {model.get('type')} with unk_token {model.get('unk_token')}"
        raise DataError(f"{path}: {found}; supported is BPE with unk_token [UNK]")
    on = [f"model.{name}" for name in PLAIN_MODEL if model.get(name)]
    on += ["normalizer"] if contents.get("normalizer") not in (None, UPPER_CASE) else []
    pre = contents.get("pre_tokenizer")
    on += [] if pre is None or pre.get("type") in ("Whitespace", "WhitespaceSplit") else ["pre_tokenizer"]
    if on:
        raise DataError(f"{path}: {', '.join(on)} is set, which changes tokens of DNA and is not supported. Unset it")


def _post_processor(ids: dict[str, int]) -> dict[str, Any]:
    def special(text: str, type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": text, "type_id": type_id}}

    def sequence(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    single = [special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, sequence("B", 1), special("[SEP]", 1)],
        "special_tokens": {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in ("[CLS]", "[SEP]")},
    }


def vocabulary_of_merges(merges: Sequence[tuple[str, str]]) -> BpeVocabulary:
    """The vocabulary with these merges: special tokens, A, C, G, T, products."""
    return BpeVocabulary((*SPECIALS, *BASES, *(left + right for left, right in merges)), tuple(merges))


def train_bpe(
    prefixes: Sequence[str | Path],
    output: str | Path,
    *,
    vocab_size: int = 4096,
    max_token_length: int = 32,
    min_count: int = 2,
    both_strands: bool = False,
    max_bases: int | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Learn a vocabulary from base shards; write it to `output` (a tokenizer.json) and what it was learned from to OUTPUT.training.json.

    The most frequent pair becomes a token, ties go to the lowest ids: the merges are those of the `tokenizers` library with the same
    words. Memory: 2 bytes per base read (4 with both_strands) and 8 bytes per pair of tokens (134 MB for 4,096).

    max_token_length: bases of the longest token, 0 for no limit. min_count: pairs seen less often are not merged. max_bases: learn
    from so many bases at most, pieces of up to 2^20 bases drawn by `seed` from all documents; without it, every base is read.
    on_progress is called with (merges learned, merges wanted). Returns what OUTPUT.training.json holds.

    Raises ConfigError for settings out of range, DataError where the bases do not hold enough different pairs.
    """
    num_merges = vocab_size - len(SPECIALS) - len(BASES)
    _check_settings(num_merges, max_token_length, min_count, max_bases)
    shards = [open_shard(prefix) for prefix in prefixes]
    if not shards:
        raise ConfigError("no shards to learn from. Give at least one prefix")
    pieces = _choose_pieces(shards, max_bases, seed)
    chosen = int((pieces[:, 2] - pieces[:, 1]).sum())
    trainer = BpeTrainer(
        num_merges=num_merges, max_length=max_token_length, min_count=min_count, capacity=(chosen + len(pieces)) * (1 + both_strands)
    )
    used = 0
    for bases in _read(shards, pieces):
        used += trainer.feed(bases)
        if both_strands:
            trainer.feed(bases, reverse=True)
    vocabulary, counts = _learn(trainer, num_merges, on_progress)
    total = sum(len(shard.bases) for shard in shards)
    report = {
        "format": TRAINING_FORMAT,
        "tool_version": __version__,
        "settings": {
            "vocab_size": vocab_size,
            "max_token_length": max_token_length,
            "min_count": min_count,
            "both_strands": both_strands,
            "max_bases": max_bases,
            "seed": seed,
        },
        "shards": [{"prefix": str(shard.prefix), "xxh3_128": shard.digest} for shard in shards],
        "bases": {"total": total, "used": used, "not_drawn": total - chosen, "not_acgt": chosen - used},
        "counts": counts,
    }
    vocabulary.save(output)
    write_whole(training_file(output), json.dumps(report, indent=2) + "\n")
    return report


def training_file(output: str | Path) -> Path:
    """Where `train_bpe` writes what a tokenizer.json was learned from."""
    return Path(f"{output}.training.json")


def format_training(report: dict[str, Any], output: str | Path) -> str:
    """The text that `dnapretrain train-bpe` prints."""
    bases, counts = report["bases"], report["counts"]
    both = ", both strands" if report["settings"]["both_strands"] else ""
    return "\n".join(
        [
            f"tokenizer  {output}: {report['settings']['vocab_size']:,} tokens, {len(counts):,} of them merged",
            f"bases      {bases['used']:,} read{both}; of {bases['total']:,}, {bases['not_drawn']:,} were not drawn and "
            f"{bases['not_acgt']:,} are not A, C, G, T",
            f"pairs      the first merge stood in {counts[0]:,} places, the last in {counts[-1]:,}",
        ]
    )


def _check_settings(num_merges: int, max_token_length: int, min_count: int, max_bases: int | None) -> None:
    rest = len(SPECIALS) + len(BASES)
    most = MAX_TRAINED_BPE_TOKENS - len(BASES)
    if not 1 <= num_merges <= most:
        raise ConfigError(f"vocab_size = {num_merges + rest} is outside {rest + 1} to {most + rest}")
    if max_token_length < 0 or max_token_length == 1:
        raise ConfigError(f"max_token_length = {max_token_length} must be 2 or more, or 0 for no limit")
    if min_count < 1:
        raise ConfigError(f"min_count = {min_count} is below 1")
    if max_bases is not None and max_bases < 1:
        raise ConfigError(f"max_bases = {max_bases} is below 1. Leave it out to read every base")


def _choose_pieces(shards: Sequence[Shard], max_bases: int | None, seed: int) -> NDArray[np.int64]:
    """Rows (shard, start, end) in `bases`: whole documents, or where `max_bases` is less, pieces drawn at random, the last one cut."""
    if max_bases is None or sum(len(shard.bases) for shard in shards) <= max_bases:
        documents = [
            np.stack([np.full(len(shard.lengths), number), shard.offsets, shard.offsets + shard.lengths], axis=1)
            for number, shard in enumerate(shards)
        ]
        return np.concatenate(documents).astype(np.int64)
    rows = []
    for number, shard in enumerate(shards):
        per_document = -(-shard.lengths // PIECE)
        document = np.repeat(np.arange(len(shard.lengths)), per_document)
        nth = np.arange(len(document)) - np.repeat(np.cumsum(per_document) - per_document, per_document)
        start = shard.offsets[document] + nth * PIECE
        end = np.minimum(start + PIECE, shard.offsets[document] + shard.lengths[document])
        rows.append(np.stack([np.full(len(document), number), start, end], axis=1))
    pieces = np.concatenate(rows).astype(np.int64)
    pieces = pieces[np.random.default_rng(seed).permutation(len(pieces))]
    before = np.cumsum(pieces[:, 2] - pieces[:, 1]) - (pieces[:, 2] - pieces[:, 1])
    pieces = pieces[before < max_bases]
    pieces[-1, 2] = pieces[-1, 1] + min(pieces[-1, 2] - pieces[-1, 1], max_bases - before[before < max_bases][-1])
    return pieces[np.lexsort((pieces[:, 1], pieces[:, 0]))]


def _read(shards: Sequence[Shard], pieces: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    for number, start, end in pieces.tolist():
        yield np.asarray(shards[number].bases[start:end])


def _learn(trainer: BpeTrainer, num_merges: int, on_progress: OnProgress | None) -> tuple[BpeVocabulary, list[int]]:
    """The vocabulary, and how often each pair stood there when it was merged."""
    texts = list(BASES)
    merges: list[tuple[str, str]] = []
    counts: list[int] = []
    while len(merges) < num_merges:
        learned = trainer.learn(MERGES_AT_ONCE)
        if not learned:
            raise DataError(
                f"only {len(merges)} pairs to merge, {num_merges} wanted: too little sequence. "
                "Give more of it, or lower --vocab-size or --min-count"
            )
        for left, right, count in learned:
            merges.append((texts[left], texts[right]))
            texts.append(texts[left] + texts[right])
            counts.append(count)
        if on_progress:
            on_progress(len(merges), num_merges)
    return vocabulary_of_merges(merges), counts
