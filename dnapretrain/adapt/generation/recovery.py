"""Sequence recovery (GENERator, arXiv:2502.07272): does a decoder go on as the genome does?

Prompts are held-out sequence; the model adds `num_bases` bases, the likeliest token each time, and what is counted is the share of
them that are the genome's, place by place. GENERator's script reads up to 6,144 bases and adds 30, as here by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dnapretrain.adapt.generation.generate import Generator, Sampling
from dnapretrain.adapt.generation.prompts import Prompt
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError
from dnapretrain.evaluate.counted import spread

PROMPT_BASES = 6144
NUM_BASES = 30
KMER = 6
"""Bases of `next_kmer_accuracy`, whatever the model's tokens are."""


def sequence_recovery(
    generator: Generator,
    stream: SampleStream,
    num_prompts: int,
    prompt_bases: int = PROMPT_BASES,
    num_bases: int = NUM_BASES,
    batch_size: int = 8,
) -> dict[str, Any]:
    """How well the ends of held-out samples are recovered from what stands before them.

    `num_prompts` samples, spread evenly over the set. Of each the last `num_bases` bases are to be recovered from the `prompt_bases`
    before them, fewer where context or samples have no room for as many (for k-mers a multiple of k, as published). Samples that are
    shorter, or have a letter other than A, C, G, T there, are left out and counted.

    Returns base_accuracy (share of equal bases), by_position (the same, at each of the bases), next_kmer_accuracy (share of prompts
    whose next 6 bases are all right; null below 6), by_length (the same for the next 1, 2, ... bases), num_prompts, left_out,
    prompt_bases, num_bases. Raises ConfigError, DataError.
    """
    for name, value in (("num_prompts", num_prompts), ("prompt_bases", prompt_bases), ("num_bases", num_bases)):
        if value < 1:
            raise ConfigError(f"{name} = {value} is below 1.")
    texts = [_longest_text(stream, int(number)) for number in spread(stream.num_samples, num_prompts)]
    prompt_bases = _room(generator.tokenizer, generator.context, min(prompt_bases, max(map(len, texts)) - num_bases), num_bases)
    if prompt_bases < 1:
        raise ConfigError(
            f"samples of '{stream.name}' have at most {max(map(len, texts))} bases and the model's context is {generator.context} tokens: "
            f"no room for a prompt and {num_bases} new bases. Recover fewer."
        )
    ends = [text[-prompt_bases - num_bases :] for text in texts]
    ends = [end for end in ends if len(end) == prompt_bases + num_bases and set(end) <= set("ACGT")]
    if not ends:
        raise DataError(f"none of {len(texts)} samples of '{stream.name}' has {prompt_bases + num_bases} known bases. Lower prompt_bases.")
    prompts = [Prompt(f"sample{number}", end[:prompt_bases]) for number, end in enumerate(ends)]
    sequences = generator.continue_all(prompts, num_bases, Sampling(temperature=0), batch_size=batch_size)
    return {
        **_scores([sequence.generated for sequence in sequences], [end[prompt_bases:] for end in ends]),
        "num_prompts": len(ends),
        "left_out": len(texts) - len(ends),
        "prompt_bases": prompt_bases,
        "num_bases": num_bases,
    }


def _scores(generated: Sequence[str], truth: Sequence[str]) -> dict[str, Any]:
    equal = np.array([list(bases) for bases in generated]) == np.array([list(bases) for bases in truth])
    by_length = np.logical_and.accumulate(equal, axis=1).mean(axis=0).tolist()
    return {
        "base_accuracy": float(equal.mean()),
        "next_kmer_accuracy": by_length[KMER - 1] if len(by_length) >= KMER else None,
        "by_length": by_length,
        "by_position": equal.mean(axis=0).tolist(),
    }


def _longest_text(stream: SampleStream, number: int) -> str:
    """The longest stretch that a sample reads, in upper case."""
    return max((bases.tobytes().decode("ascii").upper() for _, bases in stream.read(number)), key=len, default="")


def _room(tokenizer: Tokenizer, context: int, wanted: int, num_bases: int) -> int:
    """Bases of prompts that surely leave room for the new ones: no base takes more than one token."""
    if tokenizer.bpe:
        return min(wanted, context - 2 - num_bases)
    k = tokenizer.k
    return min(wanted, (context - tokenizer.add_bos) * k - num_bases - (-num_bases % k)) // k * k
