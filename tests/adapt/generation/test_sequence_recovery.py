"""Sequence recovery counts what it says, on what stands at the ends of held-out samples."""

from __future__ import annotations

import numpy as np
import pytest

from dnapretrain.adapt.generation.generate import GeneratedSequence
from dnapretrain.adapt.generation.recovery import sequence_recovery
from dnapretrain.config import DataConfig, TokenizerConfig
from dnapretrain.data.sampling.samples import held_out_streams
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError, DataError


class Told:
    """Stands in for a model: goes on as `genome` does, but for a wrong base at some places."""

    def __init__(self, genome, tokenizer, context, wrong=()):
        self.genome, self.tokenizer, self.context, self.wrong, self.asked = genome, tokenizer, context, wrong, []

    def continue_all(self, prompts, num_bases, sampling, num_samples=1, batch_size=8):
        assert sampling.temperature == 0
        self.asked += [prompt.bases for prompt in prompts]
        found = []
        for number, prompt in enumerate(prompts):
            at = self.genome.index(prompt.bases) + len(prompt.bases)
            bases = list(self.genome[at : at + num_bases])
            for place in self.wrong:
                if number % 2 == 0:
                    bases[place] = "ACGT"["ACGT".index(bases[place]) - 1]
            found.append(GeneratedSequence(prompt.name, prompt.bases, "".join(bases), ""))
        return found


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    text = "".join(np.random.default_rng(1).choice(list("ACGT"), 2000))
    text = text[:230] + "N" + text[231:]
    path = tmp_path_factory.mktemp("genome") / "held.fa"
    path.write_text(f">a\n{text.lower()}\n")
    preprocess([path], path.with_suffix(""))
    return text, path.with_suffix("")


def stream_of(genome, tokenizer, length):
    data = {"train": [str(genome[1])], "valid": {"held": str(genome[1])}, "sequence_length": length}
    return held_out_streams(DataConfig.model_validate(data), tokenizer)["held"]


def test_shares_by_place_and_of_whole_k_mers(genome):
    tokenizer = build_tokenizer(TokenizerConfig.model_validate({"kind": "nucleotide"}))
    stream = stream_of(genome, tokenizer, 100)  # 20 windows of 100 bases
    right = Told(genome[0], tokenizer, 100)
    found = sequence_recovery(right, stream, 20, 60, 12)
    assert (found["base_accuracy"], found["next_kmer_accuracy"], found["by_position"]) == (1.0, 1.0, [1.0] * 12)
    assert (found["num_prompts"], found["left_out"], found["prompt_bases"], found["num_bases"]) == (19, 1, 60, 12)  # N in the third
    windows = [genome[0][start : start + 100] for start in range(0, 2000, 100) if start != 200]
    assert right.asked == [window[28:88] for window in windows]
    some = sequence_recovery(Told(genome[0], tokenizer, 100, wrong=(2, 9)), stream, 20, 60, 12)
    assert some["by_position"] == [pytest.approx(9 / 19) if place in (2, 9) else 1.0 for place in range(12)]
    assert some["next_kmer_accuracy"] == pytest.approx(9 / 19) and some["by_length"] == pytest.approx([1.0] * 2 + [9 / 19] * 10)
    assert sequence_recovery(Told(genome[0], tokenizer, 100, wrong=(9,)), stream, 20, 60, 12)["next_kmer_accuracy"] == 1.0
    assert sequence_recovery(right, stream, 20, 60, 5)["next_kmer_accuracy"] is None


def test_prompts_have_room_and_whole_k_mers(genome):
    tokenizer = build_tokenizer(TokenizerConfig.model_validate({"kind": "generator"}))
    stream = stream_of(genome, tokenizer, 20)  # windows of 120 bases
    for wanted, new, prompt in ((6144, 30, 84), (50, 30, 48), (6144, 29, 84), (6144, 1, 108)):
        assert sequence_recovery(Told(genome[0], tokenizer, 20), stream, 3, wanted, new)["prompt_bases"] == prompt
    with pytest.raises(ConfigError, match="at most 120 bases"):
        sequence_recovery(Told(genome[0], tokenizer, 20), stream, 3, 6144, 120)
    with pytest.raises(DataError, match=r"none of 1 samples .* has 2\d* known bases"):
        sequence_recovery(Told(genome[0], tokenizer, 1000), stream_of(genome, tokenizer, 40), 1, 6144, 24)
