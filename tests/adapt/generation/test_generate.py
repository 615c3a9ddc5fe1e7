import numpy as np
import pytest
import torch
from families import bpe_of
from reference import reference_logits, small_config, small_encoder, write_random

from dnapretrain.adapt.generation.generate import Sampling, choose, generate, to_fasta
from dnapretrain.adapt.generation.prompts import read_prompts
from dnapretrain.cli import main
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


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """The tokenizer of GENERator: no tokens of single bases."""
    return export(tmp_path_factory.mktemp("generator"), {"kind": "generator"})


@pytest.fixture(scope="module")
def nt(tmp_path_factory):
    """The tokenizer of Nucleotide Transformer: 6-mers, and tokens of single bases."""
    return export(tmp_path_factory.mktemp("nt"), {"kind": "nt_v2"})


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    bpe_of(None).bpe.save(folder / "merges.json")
    return export(folder, {"kind": "bpe", "file": str(folder / "merges.json")})


MODELS = ["nucleotide", "kmer", "generator", "nt", "bpe"]
LONGEST = "ACGTTGCAGATCCATGGTTA"


def slow_greedy(config, tensors, prompt, num_bases):
    """The likeliest word, one after the other, from native tensors without a cache. What is left over at the end of the prompt is what
    the first word begins with: by hand, the rest after whole words; of BPE the last token."""
    tokenizer = build_tokenizer(config.tokenizer)
    words = [
        (token, text)
        for token, text in enumerate(tokenizer.tokens)
        if set(text) <= set("ACGT") and (len(text) == tokenizer.k or tokenizer.bpe)
    ]
    if tokenizer.bpe:
        ids = tokenizer.encode(prompt).tolist()[:-1]
        rest = prompt[sum(len(tokenizer.tokens[token]) for token in ids) :]
    else:
        whole = len(prompt) // tokenizer.k * tokenizer.k
        ids, rest = tokenizer.encode(prompt[:whole]).tolist(), prompt[whole:]
    ids, bases = [tokenizer.bos_id, *ids], ""
    possible = [word for word in words if word[1].startswith(rest)]
    while len(bases) < len(rest) + num_bases:
        logits = reference_logits(config, tensors, torch.tensor(ids))[-1]
        token, text = max(possible, key=lambda word: float(logits[word[0]]))
        ids.append(token)
        bases += text
        possible = words
    return bases[len(rest) : len(rest) + num_bases], len(bases) - len(rest) - num_bases


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("prompt", ["", "ACGTTGCAGATC", "ACGTTGCAGAT", "ACGTTGCAG", "A"])
def test_greedy_equals_a_slow_search_on_the_native_tensors(model, prompt, request):
    directory, config, tensors = request.getfixturevalue(model)
    [record] = generate(directory, [prompt], num_bases=20, temperature=0)
    assert (record.generated, record.cut_bases) == slow_greedy(config, tensors, prompt, 20)
    assert record.prompt == prompt


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_gives_what_each_prompt_gives_alone(model, request):
    directory, _, _ = request.getfixturevalue(model)
    prompts = [LONGEST[:length] for length in (20, 1, 12, 7, 0)]
    for settings in ({"temperature": 0}, {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "num_samples": 3, "seed": 4}):
        found = [
            [(record.generated, record.cut_bases) for record in generate(directory, prompts, num_bases=25, batch_size=size, **settings)]
            for size in (1, 2, 4, 100)
        ]
        assert found[0] == found[1] == found[2] == found[3]
        assert len(set(found[0])) > 2
    alone = [generate(directory, [prompt], num_bases=25, temperature=0)[0].generated for prompt in prompts]
    assert alone == [record.generated for record in generate(directory, prompts, num_bases=25, temperature=0)]


@pytest.mark.parametrize("model", ["kmer", "generator", "nt", "bpe"])
def test_bases_beyond_whole_tokens_condition_the_first_one(model, request):
    """Shares of first tokens are those of the words that begin with the rest, and of no others."""
    directory, config, tensors = request.getfixturevalue(model)
    tokenizer = build_tokenizer(config.tokenizer)
    rest = "CG" if model == "bpe" else "AC"[: tokenizer.k - 1]
    words = {token: text for token, text in enumerate(tokenizer.tokens) if text.startswith(rest) and len(text) >= tokenizer.k % 5}
    logits = reference_logits(config, tensors, torch.tensor([tokenizer.bos_id]))[-1][list(words)]
    wanted = torch.zeros(4)
    for share, text in zip(torch.softmax(logits, 0), words.values(), strict=True):
        if len(text) > len(rest):
            wanted["ACGT".index(text[len(rest)])] += share
    records = generate(directory, [rest], num_bases=1, num_samples=3000, batch_size=3000)
    found = torch.tensor([sum(record.generated == base for record in records) for base in "ACGT"]) / 3000
    if model == "bpe":  # CG itself says nothing of the next base: leave out what it gets
        assert (found >= wanted - 0.04).all()
    else:
        assert (found - wanted).abs().max() < 0.04


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
    with pytest.raises(DataError, match="prompt2 has '-' at position 3"):
        generate(nucleotide[0], ["ACG", "AC-"], num_bases=5)
    with pytest.raises(DataError, match=r"'N' at position 5, among its last 2 base\(s\)"):
        generate(kmer[0], ["ACGTN"], num_bases=5)
    for directory, *_ in (nucleotide, kmer):  # elsewhere N is read as in training
        assert set(generate(directory, ["ANNUGC"], num_bases=5)[0].generated) <= set("ACGT")
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


def test_a_k_mer_model_without_bos_needs_a_whole_one(tmp_path):
    directory, _, _ = export(tmp_path, {**KMER, "add_bos": False})
    with pytest.raises(DataError, match=r"a prompt of 3 base\(s\) at least"):
        generate(directory, ["AC"], num_bases=5)
    assert len(generate(directory, ["ACGT"], num_bases=5)[0].generated) == 5


@pytest.mark.parametrize("setting", ["num_bases", "num_samples", "batch_size", "temperature", "top_k", "seed", "top_p"])
def test_settings_out_of_range_are_named(nucleotide, setting):
    settings = {"num_bases": 5, setting: -1}
    with pytest.raises(ConfigError, match=f"{setting} = -1"):
        generate(nucleotide[0], ["A"], **settings)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="temperature = "):
            generate(nucleotide[0], ["A"], num_bases=5, temperature=value)


def test_folders_and_devices_that_are_not_there(nucleotide, tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        generate(tmp_path, ["A"], num_bases=5)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            generate(nucleotide[0], ["A"], num_bases=5, device="cuda")


def test_fasta_is_wrapped_and_says_where_the_model_began(nucleotide):
    records = generate(nucleotide[0], ["ACGTAC"], num_bases=56, temperature=0.5, seed=7, num_samples=2)
    lines = to_fasta(records).splitlines()
    assert lines[0] == ">prompt1_sample1 generated_from=7 temperature=0.5 top_k=0 top_p=1 seed=7"
    assert [len(line) for line in lines if line[0] != ">"] == [60, 2, 60, 2]
    assert "".join(lines[1:3]) == "ACGTAC" + records[0].generated
    assert to_fasta(records).endswith("\n")


def test_cut_bases_are_said(kmer):
    [record] = generate(kmer[0], ["ACGT"], num_bases=4, temperature=0)
    assert record.cut_bases == 1  # 1 base is healed: 2, 3 new ones
    assert to_fasta([record]).splitlines()[0].endswith("seed=0 cut_bases=1")


def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_it():
    logits = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log().double()
    uniforms = np.linspace(0, 1, 1000, endpoint=False)

    def shares(**settings):
        chosen = choose(logits.expand(1000, -1).clone(), uniforms, Sampling(**settings))
        return [round(float((chosen == column).double().mean()), 2) for column in range(4)]

    assert shares() == [0.5, 0.1, 0.3, 0.1]
    assert shares(top_p=0.5) == [1, 0, 0, 0]
    assert shares(top_p=0.51) == shares(top_k=2) == shares(top_p=0.8) == [0.63, 0, 0.37, 0]
    assert shares(top_p=0.01) == shares(top_k=1) == shares(temperature=0) == shares(temperature=1e-300) == [1, 0, 0, 0]
    assert shares(top_k=2, top_p=0.6) == [1, 0, 0, 0]  # of what top_k left
    assert shares(temperature=0.5) == [0.69, 0.03, 0.25, 0.03]


def test_a_checkpoint_is_exported_on_the_way(nucleotide, capsys):
    directory, _, _ = nucleotide
    native = directory.parent / "native"
    assert generate(native, ["ACGT"], num_bases=30, seed=2) == generate(directory, ["ACGT"], num_bases=30, seed=2)
    assert f"exported {native} to a temporary folder" in capsys.readouterr().err


def test_a_full_context_of_byte_pairs_is_said(bpe):
    with pytest.raises(DataError, match=r"context of 64 tokens was full after \d+ of 400"):
        generate(bpe[0], [""], num_bases=400, temperature=50.0)


def test_an_encoder_continues_nothing(tmp_path):
    write_random(tmp_path / "native", small_encoder())
    with pytest.raises(ConfigError, match="an encoder"):
        generate(tmp_path / "native", ["ACGT"], num_bases=5)


def test_prompts_from_a_file_keep_their_names(nucleotide, tmp_path, capsys):
    path = tmp_path / "prompts.fa"
    path.write_text(">first some text\nacgtNNNNNNNNNNNNNNNNNNNN\nACG\n>none\n>second\nGGGT\n")
    prompts = read_prompts(path)
    assert [(prompt.name, prompt.bases) for prompt in prompts] == [("first", "ACGT" + 20 * "N" + "ACG"), ("none", ""), ("second", "GGGT")]
    arguments = ["generate", str(nucleotide[0]), "--prompt", "ACGT", "--prompts", str(path), "--num-bases", "9", "--top-p", "0.9"]
    assert main([*arguments, "--batch-size", "3"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line[0] == ">"] == [
        f">{name}_sample1" for name in ("prompt1", "first", "none", "second")
    ]
    assert main([*arguments, "--batch-size", "1", "--output", str(tmp_path / "out.fa")]) == 0
    assert (tmp_path / "out.fa").read_text() == printed
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "none.fa")
