"""Tokenizers as Hugging Face folders: written for `transformers.AutoTokenizer`, and read back.

An exported tokenizer upper-cases, as training does: it gives the ids of `Tokenizer.encode`, which for published kinds are those of
the published tokenizer wherever the text holds no lower-case letter. A BPE tokenizer upper-cases acgt only: other letters are [UNK]
in either case.
"""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

from dnapretrain.config import BPE_BASES_PER_TOKEN, PUBLISHED_TOKENIZERS, TokenizerConfig
from dnapretrain.data.tokens.bpe import UPPER_CASE, bpe_of_json
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer
from dnapretrain.data.tokens.vocabularies import OWN_SPECIALS
from dnapretrain.errors import CheckpointError, DataError


def save_hf_tokenizer(tokenizer: Tokenizer, directory: str | Path, max_length: int) -> None:
    """Write the files that `transformers.AutoTokenizer.from_pretrained(directory)` loads; it gives the ids of `encode`, with the
    special tokens that begin and end a sample."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    roles = tokenizer.vocabulary.roles
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        **roles,
    }
    _fast_tokenizer(tokenizer).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (directory / "special_tokens_map.json").write_text(json.dumps(roles, indent=2) + "\n")


def _fast_tokenizer(tokenizer: Tokenizer) -> Any:
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as FastTokenizer

    vocabulary = tokenizer.vocabulary
    unk = vocabulary.roles["unk_token"]
    if tokenizer.bpe:
        fast = FastTokenizer.from_str(json.dumps({**tokenizer.bpe.to_json(), "normalizer": UPPER_CASE}))
        fast.decoder = decoders.Fuse()
        fast.post_processor = _frame(tokenizer)
        return fast
    fast = FastTokenizer(models.WordLevel({text: i for i, text in enumerate(tokenizer.tokens)}, unk_token=unk))
    # The library has no upper-casing normalizer. Where runs of letters are told apart, all 26 are upper-cased.
    letters = string.ascii_lowercase if tokenizer.kind in PUBLISHED_TOKENIZERS else "acgtn"
    fast.normalizer = normalizers.Sequence([normalizers.Replace(letter, letter.upper()) for letter in letters])
    fast.pre_tokenizer = _pre_tokenizer(tokenizer)
    fast.decoder = decoders.Fuse()
    fast.post_processor = _frame(tokenizer)
    fast.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in vocabulary.specials])
    return fast


def _pre_tokenizer(tokenizer: Tokenizer) -> Any:
    from tokenizers import Regex, pre_tokenizers

    singles = tokenizer.vocabulary.singles
    if singles:
        pattern = rf"[ACGT]{{{tokenizer.k}}}|[{singles}]|[^{singles}]+"
        return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(pattern), behavior="isolated")])
    pattern = r"[A-Z]{1,6}|[^A-Z]" if tokenizer.kind == "generator" else rf"[\s\S]{{1,{tokenizer.k}}}"
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def _frame(tokenizer: Tokenizer) -> Any:
    from tokenizers import processors

    before = [(tokenizer.tokens[tokenizer.bos_id], tokenizer.bos_id)] if tokenizer.add_bos else []
    after = [(tokenizer.tokens[tokenizer.eos_id], tokenizer.eos_id)] if tokenizer.add_eos and tokenizer.eos_id is not None else []
    if not before + after:
        return None
    bos, eos = " ".join(text for text, _ in before), " ".join(text for text, _ in after)
    one = f"{bos} $A {eos}".strip()
    return processors.TemplateProcessing(single=one, pair=f"{one} {one.replace('$A', '$B:1')}", special_tokens=before + after)


def load_hf_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a folder that `save_hf_tokenizer` wrote, transformers saved again, or a published model came with (vocab.txt,
    one token a line, alone or followed by its id; DNABERT-2's tokenizer.json). BPE comes back with the nominal k of 5. Raises
    CheckpointError for others."""
    path = Path(directory) / "tokenizer.json"
    if not path.exists() and path.with_name("vocab.txt").exists():
        return _from_vocab_file(path.with_name("vocab.txt"))
    try:
        content = json.loads(path.read_text())
        vocab = content["model"]["vocab"]
        texts = sorted(vocab, key=vocab.__getitem__)
        frame = json.dumps(content["post_processor"])
        tokenizer = _bpe(path, content) if content["model"].get("type") == "BPE" else _published(texts) or _own(texts)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise CheckpointError(f"{path}: not a tokenizer that dnapretrain wrote. Give a folder made by dnapretrain convert to-hf") from None
    if vocab != {text: i for i, text in enumerate(tokenizer.tokens)}:
        raise CheckpointError(
            f"{path}: not the vocabulary of a tokenizer of dnapretrain, nor of a published one that it knows ({len(texts)} tokens)"
        )
    add_bos, add_eos = (number is not None and f'"{tokenizer.tokens[number]}"' in frame for number in (tokenizer.bos_id, tokenizer.eos_id))
    return replace(tokenizer, add_bos=add_bos, add_eos=add_eos)


def _bpe(path: Path, content: dict[str, Any]) -> Tokenizer:
    try:
        vocabulary = bpe_of_json(content, str(path))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    return Tokenizer("bpe", BPE_BASES_PER_TOKEN, "ACGT", add_bos=True, add_eos=True, bpe=vocabulary, file=path)


def _own(texts: list[str]) -> Tokenizer:
    """The tokenizer of ours that could have these texts: the caller compares. Raises ValueError and its like for foreign ones."""
    first = texts[len(OWN_SPECIALS) : len(OWN_SPECIALS) + 4]
    k, base_order = len(first[0]), "".join(text[-1] for text in first)
    if texts[-1] == "N":
        return build_tokenizer(TokenizerConfig.model_validate({"kind": "nucleotide", "base_order": base_order}))
    return build_tokenizer(TokenizerConfig.model_validate({"kind": "kmer", "k": k, "base_order": base_order}))


def _published(texts: list[str]) -> Tokenizer | None:
    for kind in PUBLISHED_TOKENIZERS:
        tokenizer = build_tokenizer(TokenizerConfig.model_validate({"kind": kind}))
        if list(tokenizer.tokens) == texts:
            return tokenizer
    return None


def _from_vocab_file(path: Path) -> Tokenizer:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    texts = [line[0] if len(line) == 1 or line[1:] == [str(number)] else "" for number, line in enumerate(lines) if line]
    tokenizer = _published(texts)
    if tokenizer is None:
        known = ", ".join(PUBLISHED_TOKENIZERS)
        raise CheckpointError(f"{path}: not the vocabulary of a published tokenizer that dnapretrain knows ({len(texts)} tokens; {known})")
    return tokenizer
