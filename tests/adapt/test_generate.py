import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))
from reference import reference_logits, small_config, write_random

from dnapretrain.adapt.generate import generate, to_fasta
from dnapretrain.convert.hf import to_hf
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError, DataError

KMER = {"kind": "kmer", "k": 3, "base_order": "ATCG"}


def export(directory, tokenizer=None):
    config = small_config(tokenizer)
    tensors = write_random(directory / "native", config)
    to_hf(directory / "native", directory / "hf")
    return directory / "hf", config, tensors


@pytest.fixture(scope="module")
def nucleotide(tmp_path_factory):
    return export(tmp_path_factory.mktemp("nucleotide"))


@pytest.fixture(scope="module")
def kmer(tmp_path_factory):
    return export(tmp_path_factory.mktemp("kmer"), KMER)


def slow_greedy(config, tensors, prompt, num_bases):
    """The likeliest word of bases, one after the other, from native tensors without a cache."""
    tokenizer = build_tokenizer(config.tokenizer)
    words = [(token, text) for token, text in enumerate(tokenizer.tokens) if set(text) <= set("ACGT")]
    ids, bases = [tokenizer.bos_id, *tokenizer.encode(prompt).tolist()], ""
    while len(bases) < num_bases:
        logits = reference_logits(config, tensors, torch.tensor(ids))[-1]
        token, text = max(words, key=lambda word: float(logits[word[0]]))
        ids.append(token)
        bases += text
    return bases[:num_bases]


@pytest.mark.parametrize("model", ["nucleotide", "kmer"])
@pytest.mark.parametrize("prompt", ["", "ACGTTGCAGATC"])
def test_greedy_equals_a_slow_search_on_the_native_tensors(model, prompt, request):
    directory, config, tensors = request.getfixturevalue(model)
    [record] = generate(directory, [prompt], num_bases=20, temperature=0)
    assert record.generated == slow_greedy(config, tensors, prompt, 20)
    assert record.prompt == prompt


@pytest.mark.parametrize("model", ["nucleotide", "kmer"])
@pytest.mark.parametrize("num_bases", [1, 20, 31])
def test_exactly_so_many_bases_and_nothing_else(model, num_bases, request):
    directory, _, _ = request.getfixturevalue(model)
    records = generate(directory, ["acgtac", ""], num_bases=num_bases, temperature=3.0, num_samples=5)
    assert [record.name for record in records] == [f"prompt{i}_sample{j}" for i in (1, 2) for j in range(1, 6)]
    assert all(len(record.generated) == num_bases and set(record.generated) <= set("ACGT") for record in records)
    assert records[0].prompt == "ACGTAC"


def test_a_seed_gives_the_same_bases_whatever_stands_around(nucleotide):
    directory, _, _ = nucleotide
    draw = lambda prompts, **settings: [record.generated for record in generate(directory, prompts, num_bases=40, **settings)]  # noqa: E731
    first = draw(["ACGT", "GGG"], seed=5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert draw(["ACGT", "GGG"], seed=5) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert draw(["ACGT"], seed=5) == first[:1]
    assert draw(["ACGT"], seed=6) != first[:1]
    assert len(set(draw(["ACGT"], seed=5, num_samples=4))) == 4


def test_top_k_one_is_greedy(nucleotide):
    directory, _, _ = nucleotide
    greedy = generate(directory, ["ACGT"], num_bases=30, temperature=0)[0].generated
    assert generate(directory, ["ACGT"], num_bases=30, top_k=1, seed=3)[0].generated == greedy
    assert generate(directory, ["ACGT"], num_bases=30, top_k=2, temperature=5.0, seed=3)[0].generated != greedy


def test_temperature_sharpens(nucleotide):
    """First bases of many samples follow softmax(logits / temperature) over the four bases."""
    directory, config, tensors = nucleotide
    tokenizer = build_tokenizer(config.tokenizer)
    logits = reference_logits(config, tensors, torch.tensor([tokenizer.bos_id]))[-1][[tokenizer.tokens.index(base) for base in "ACGT"]]
    for temperature in (0.5, 2.0):
        records = generate(directory, [""], num_bases=1, temperature=temperature, num_samples=4000)
        found = torch.tensor([sum(record.generated == base for record in records) for base in "ACGT"]) / 4000
        assert (found - torch.softmax(logits / temperature, 0)).abs().max() < 0.03


def test_prompts_that_cannot_be_continued(nucleotide, kmer):
    with pytest.raises(DataError, match="'N' at position 3"):
        generate(nucleotide[0], ["ACN"], num_bases=5)
    with pytest.raises(DataError, match="first 2 base"):
        generate(kmer[0], ["ACGTA"], num_bases=5)
    with pytest.raises(DataError, match="context of 64 tokens; there is room for 3 new bases"):
        generate(nucleotide[0], ["A" * 60], num_bases=5)
    assert len(generate(nucleotide[0], ["A" * 60], num_bases=3)) == 1
    with pytest.raises(DataError, match="room for 0 new bases"):
        generate(nucleotide[0], ["A" * 100], num_bases=1)


def test_a_model_without_bos_needs_a_prompt(tmp_path):
    directory, _, _ = export(tmp_path, {"kind": "nucleotide", "add_bos": False})
    with pytest.raises(DataError, match="needs a prompt"):
        generate(directory, [""], num_bases=5)
    assert len(generate(directory, ["A"], num_bases=5)[0].generated) == 5


@pytest.mark.parametrize("setting", ["num_bases", "num_samples", "temperature", "top_k", "seed"])
def test_settings_out_of_range_are_named(nucleotide, setting):
    settings = {"num_bases": 5, setting: -1}
    with pytest.raises(ConfigError, match=f"{setting} = -1"):
        generate(nucleotide[0], ["A"], **settings)


def test_folders_and_devices_that_are_not_there(nucleotide, tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        generate(tmp_path, ["A"], num_bases=5)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            generate(nucleotide[0], ["A"], num_bases=5, device="cuda")


def test_fasta_is_wrapped_and_says_where_the_model_began(nucleotide):
    records = generate(nucleotide[0], ["ACGTAC"], num_bases=56, temperature=0.5, seed=7, num_samples=2)
    lines = to_fasta(records).splitlines()
    assert lines[0] == ">prompt1_sample1 generated_from=7 temperature=0.5 top_k=0 seed=7"
    assert [len(line) for line in lines if line[0] != ">"] == [60, 2, 60, 2]
    assert "".join(lines[1:3]) == "ACGTAC" + records[0].generated
    assert to_fasta(records).endswith("\n")
