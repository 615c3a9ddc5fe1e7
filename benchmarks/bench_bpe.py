"""Speed of BPE beside the `tokenizers` library: same merges, same sequence, one thread, CPU time, medians of rounds in turns.

    python benchmarks/bench_bpe.py FASTA [--tokenizer tokenizer.json] [--bases 2_000_000] [--train-bases 2_000_000]

Without --tokenizer the merges learned from the sequence are used. The library learns from lines of 1 kb, its best case (it slows
with the length of words); ours learns from the same lines, and both must learn the same.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
from tokenizers import Tokenizer, models, trainers

from dnapretrain._core import BpeTrainer
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.data.tokens.bpe import BASES, SPECIALS, BpeVocabulary, load_bpe, vocabulary_of_merges

ROUNDS = 3
LINE = 1000


def cpu_seconds(functions: list[Callable[[], Any]], rounds: int = ROUNDS) -> tuple[list[float], list[Any]]:
    seconds: list[list[float]] = [[] for _ in functions]
    results: list[Any] = [None] * len(functions)
    for _ in range(rounds):
        for number, function in enumerate(functions):
            start = time.process_time()
            results[number] = function()
            seconds[number].append(time.process_time() - start)
    return [statistics.median(times) for times in seconds], results


def learn(lines: list[np.ndarray], num_merges: int) -> BpeVocabulary:
    trainer = BpeTrainer(num_merges=num_merges, max_length=0, min_count=1, capacity=sum(map(len, lines)) + len(lines))
    for line in lines:
        trainer.feed(line)
    texts, merges = list(BASES), []
    for left, right, _ in trainer.learn(num_merges):
        merges.append((texts[left], texts[right]))
        texts.append(texts[left] + texts[right])
    return vocabulary_of_merges(merges)


def library_learn(lines: list[str], vocab_size: int) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=list(BASES), show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def bench_training(text: str, vocab_size: int) -> BpeVocabulary:
    lines = [text[start : start + LINE] for start in range(0, len(text), LINE)]
    arrays = [np.frombuffer(line.encode(), np.uint8) for line in lines]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (ours,), (vocabulary,) = cpu_seconds([lambda: learn(arrays, vocab_size - 9)], 1)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1e3
    (theirs,), (merges,) = cpu_seconds([lambda: library_learn(lines, vocab_size)], 1)
    same = "the same merges" if list(vocabulary.merges) == merges else "OTHER MERGES"
    print(
        f"training {vocab_size:,} tokens on {len(text) / 1e6:.1f} Mbase in lines of 1 kb: ours {ours:.2f} CPU-s, + {grown:.0f} MB; "
        f"tokenizers {theirs:.2f} CPU-s; {theirs / ours:.1f} x; {same}"
    )
    return vocabulary


def bench_encoding(vocabulary: BpeVocabulary, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.save(Path(folder) / "tokenizer.json")
        library = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    encoder = vocabulary.encoder()
    for size in (1_000, 10_000, 100_000):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        arrays = [np.frombuffer(piece.encode(), np.uint8) for piece in pieces]
        (ours, theirs), (found, expected) = cpu_seconds(
            [
                lambda arrays=arrays: [encoder.encode(array)[0] for array in arrays],
                lambda pieces=pieces: [library.encode(piece, add_special_tokens=False).ids for piece in pieces],
            ]
        )
        same = all(ids.tolist() == wanted for ids, wanted in zip(found, expected, strict=True))
        per_token = len(text) / sum(map(len, found))
        print(
            f"encoding pieces of {size // 1000:3} kb: ours {len(text) / ours / 1e6:6.1f} Mbase/CPU-s, tokenizers "
            f"{len(text) / theirs / 1e6:5.2f}; {theirs / ours:5.1f} x; {per_token:.2f} bases per token; {'same' if same else 'OTHER'} ids"
        )


def read_text(fasta: Path, most: int) -> str:
    """The first A, C, G and T of a FASTA file, in upper case."""
    with tempfile.TemporaryDirectory() as folder:
        preprocess([fasta], Path(folder) / "shard")
        upper = open_shard(Path(folder) / "shard").bases & 0xDF
        return bytes(upper[np.isin(upper, np.frombuffer(b"ACGT", np.uint8))][:most]).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--bases", type=int, default=2_000_000)
    parser.add_argument("--train-bases", type=int, default=2_000_000)
    arguments = parser.parse_args()
    text = read_text(arguments.fasta, max(arguments.bases, arguments.train_bases))
    learned = bench_training(text[: arguments.train_bases], arguments.vocab_size)
    bench_encoding(load_bpe(arguments.tokenizer) if arguments.tokenizer else learned, text[: arguments.bases])


if __name__ == "__main__":
    main()
