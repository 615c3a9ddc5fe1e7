"""Iterative unmasking: against a plain loop, in every encoder family, of a planted rule, and by its keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import small_config, write_random
from small_folders import write_folder

from dnapretrain.adapt.generation.generate import Sampling, to_fasta
from dnapretrain.adapt.generation.prompts import Prompt
from dnapretrain.adapt.generation.unmask import IUPAC, Unmasker, Unmasking, WordTable, unmask
from dnapretrain.cli import main
from dnapretrain.errors import ConfigError, DataError

FAMILIES = ("aido-dna", "nt-v1", "nt-v2", "dnabert2")
TEMPLATE = "ACGTACNNNNNNNNNNNNACGTACGTANNNNNNT"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_folder(tmp_path_factory.mktemp(name), name)[0] for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_fixed_bases_stay_lengths_hold_and_batches_do_not_matter(folders, name):
    unmasker = Unmasker(folders[name])
    templates = [Prompt("all", "N" * 23), Prompt("part", TEMPLATE)]
    settings = Unmasking(Sampling(seed=5), rounds=3)
    found = unmasker.fill(templates, settings, num_samples=3)
    assert found == unmasker.fill(templates, settings, num_samples=3, batch_size=1)
    assert [one.name for one in found] == [f"{name}_sample{number}" for name in ("all", "part") for number in (1, 2, 3)]
    for one, template in zip(found, [t for t in templates for _ in range(3)], strict=True):
        assert len(one.bases) == len(template.bases) and set(one.bases) <= set("ACGT")
        assert all(wanted in ("N", base) for wanted, base in zip(template.bases, one.bases, strict=True))
    assert found[3].num_filled == TEMPLATE.count("N") and "filled=18" in to_fasta(found)
    assert len({one.bases for one in found}) > 2
    assert found != unmasker.fill(templates, Unmasking(Sampling(seed=6), rounds=3), num_samples=3)
    assert unmasker.fill(templates[:1], settings) == found[:1]  # what else is asked for does not matter


@pytest.mark.parametrize("name", ("aido-dna", "nt-v2"))
@torch.no_grad()
def test_one_token_a_round_is_the_plain_loop(folders, name):
    """The likeliest word of the slot that the model is surest of, one model call for each, written down."""
    unmasker = Unmasker(folders[name])
    tokenizer, model = unmasker.tokenizer, unmasker.backbone.model
    k, words = tokenizer.k, tokenizer.vocabulary.words
    template = "ACG" * 2 * k + "N" * 4 * k + "RY" * k + "TT" * k
    pieces = [template[at : at + k] for at in range(0, len(template), k)]
    texts = tokenizer.tokens[words.start : words.stop]
    ids = [words.start + texts.index(piece) if set(piece) <= set("ACGT") else tokenizer.mask_id for piece in pieces]
    while tokenizer.mask_id in ids:
        end = [tokenizer.eos_id] if tokenizer.add_eos else []
        row = torch.tensor([[tokenizer.bos_id, *ids, *end]])
        logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, 1:].double()
        best = (-np.inf, 0, 0)
        for place, piece in enumerate(pieces):
            if ids[place] != tokenizer.mask_id:
                continue
            allowed = [at for at, text in enumerate(texts) if all(base in IUPAC[code] for base, code in zip(text, piece, strict=True))]
            chances = torch.softmax(logits[place, words.start : words.stop][allowed], dim=0)
            best = max(best, (float(chances.max()), -place, words.start + allowed[int(chances.argmax())]))
        ids[-best[1]] = best[2]
    [found] = unmasker.fill([Prompt("t", template)], Unmasking(Sampling(temperature=0)))
    assert found.bases == "".join(tokenizer.tokens[value] for value in ids)


def test_rounds_draw_as_many_tokens_each(folders, monkeypatch):
    unmasker = Unmasker(folders["aido-dna"])
    asked = []
    monkeypatch.setattr(unmasker, "_logits", lambda rows: asked.append(len(rows[0].masked())) or Unmasker._logits(unmasker, rows))
    for order in ("confident", "random"):
        unmasker.fill([Prompt("t", "N" * 10)], Unmasking(rounds=4, order=order))
    assert asked == [10, 7, 4, 2] * 2
    unmasker.fill([Prompt("t", "NNA")], Unmasking(rounds=40))
    assert asked[8:] == [2, 1]


def test_a_planted_period_is_recovered(folders):
    """A model of 6-mers that has learned a period of 6 bases at all six phases goes on with any of them, and writes one from nothing."""
    torch.manual_seed(0)
    unmasker = Unmasker(folders["nt-v2"])
    model, tokenizer = unmasker.backbone.model, unmasker.tokenizer
    model.load_state_dict(type(model)(model.config).state_dict())
    for weight in model.parameters():
        weight.requires_grad_(True)
    texts = [("ACGGTT" * 9)[phase : phase + 48] for phase in range(6)]
    rows = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text).tolist()] for text in texts])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        tokens = rows[torch.randint(0, 6, (24,))]
        masked = torch.rand(tokens.shape) < torch.rand(24, 1)
        masked[:, 0] = False
        masked[:, 3] = True
        inputs = tokens.masked_fill(masked, tokenizer.mask_id)
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
        loss = torch.nn.functional.cross_entropy(logits[masked], tokens[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    for phase, text in enumerate(texts):
        template = "".join(base if 18 <= place < 26 else "N" for place, base in enumerate(text))
        for rounds in (0, 2):
            [found] = unmasker.fill([Prompt("t", template)], Unmasking(Sampling(temperature=0), rounds))
            assert found.bases == text, phase
    made = unmasker.fill([Prompt("free", "N" * 48)], Unmasking(Sampling(seed=1), order="random"), num_samples=12)
    assert sum(one.bases in texts for one in made) >= 8
    assert len({one.bases for one in made}) > 2  # the phase is drawn


def test_words_of_byte_pairs_fill_a_run_exactly(folders):
    table = WordTable(Unmasker(folders["dnabert2"]).tokenizer)
    lengths = sorted(set(table.lengths_W.tolist()))
    for tokens, bases in ((1, 1), (3, 7), (2, 1), (2, 2 * max(lengths)), (2, 2 * max(lengths) + 1), (0, 0)):
        sums = {0}
        for _ in range(tokens):
            sums = {total + length for total in sums for length in lengths}
        assert table.can_fill(tokens, bases) == (bases in sums)
    assert set(table.lengths_W[table.fitting(3, 3)]) == {1}


def test_what_cannot_be_filled_is_said(folders, tmp_path, capsys):
    aido, bert = folders["aido-dna"], folders["dnabert2"]
    with pytest.raises(DataError, match="no open base"):
        unmask(aido, [Prompt("t", "ACGT")])
    with pytest.raises(DataError, match="the code R"):
        unmask(bert, [Prompt("t", "ACGR")])
    with pytest.raises(DataError, match=r"9,000 bases are 9,000 tokens; the model reads"):
        unmask(aido, [Prompt("t", "N" * 9000)])
    with pytest.raises(ConfigError, match="order = likely"):
        unmask(aido, [Prompt("t", "N")], Unmasking(order="likely"))
    write_random(tmp_path / "decoder", small_config())
    with pytest.raises(ConfigError, match="holds no encoder"):
        unmask(tmp_path / "decoder", [Prompt("t", "N")])
    for arguments, message in (
        (["generate", str(aido), "--prompt", "ACGT"], "holds an encoder"),
        (["generate", str(tmp_path / "decoder"), "--template", "ACGN"], "holds a decoder"),
        (["generate", str(aido), "--num-bases", "0"], "num_bases = 0"),
    ):
        assert main(arguments) != 0
        assert message in capsys.readouterr().err


def test_the_verb_fills_templates_and_checkpoints(folders, tmp_path, capsys):
    (tmp_path / "t.fa").write_text(">one\nACGTNNNN\n>two\nNNNNGG\n")
    common = ["--templates", str(tmp_path / "t.fa"), "--template", "ARN", "--seed", "3", "--rounds", "2"]
    assert main(["generate", str(folders["aido-dna"]), *common]) == 0
    printed = capsys.readouterr().out
    names = [line.split()[0] for line in printed.splitlines() if line[0] == ">"]
    assert names == [">template1_sample1", ">one_sample1", ">two_sample1"] and printed.splitlines()[1][1] in "AG"
    assert main(["generate", str(folders["aido-dna"].parent / "native"), *common, "--output", str(tmp_path / "out.fa")]) == 0
    assert (tmp_path / "out.fa").read_text() == printed
    assert main(["generate", str(folders["aido-dna"]), "--num-bases", "7", "--order", "random"]) == 0
    assert len(capsys.readouterr().out.splitlines()[1]) == 7
