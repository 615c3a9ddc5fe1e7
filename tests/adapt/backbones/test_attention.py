"""Attention by class: sums by hand, a head that looks where it was told, and the folders of all families."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_folders import FAMILIES, write_folder

from dnapretrain.adapt.backbones.attention import AttentionShares, _Sums, draw_heat_maps
from dnapretrain.cli import main
from dnapretrain.errors import ConfigError


def test_shares_by_hand():
    """Four tokens: a special, one of CDS, one half CDS and half intron, one of intron; two heads."""
    counts = torch.tensor([[0, 0, 0], [6, 0, 0], [3, 3, 0], [0, 6, 0]], dtype=torch.float64)
    even, at_cds = torch.full((4, 4), 0.25), torch.tensor([0.1, 0.7, 0.2, 0.0]).expand(4, 4)
    sums = _Sums()
    sums.add([torch.stack([even, at_cds])[None]], counts, is_causal=False)
    sums.add([torch.stack([even, at_cds])[None]], counts, is_causal=False)
    shares = sums.shares(("CDS", "intron", "intergenic"), 2)
    assert shares.classes == ("CDS", "intron") and shares.expected_C.tolist() == pytest.approx([0.5, 0.5])
    assert shares.enrichment[:, 0, 0].tolist() == pytest.approx([1, 1])
    assert shares.share_CLH[:, 0, 1].tolist() == pytest.approx([(0.7 + 0.1) / 0.9, 0.1 / 0.9])
    assert shares.specials_LH[0].tolist() == pytest.approx([0.25, 0.1])
    assert shares.confident_pairs_LH[0].tolist() == [0, 8]  # 0.7 alone is above 0.3
    assert np.isnan(shares.confident_CLH[:, 0, 0]).all() and shares.confident_CLH[:, 0, 1].tolist() == [1, 0]
    assert shares.summary()["elements"]["CDS"]["most"] == {"layer": 1, "head": 1, "enrichment": pytest.approx(16 / 9)}


def test_a_causal_model_expects_what_it_sees():
    counts = torch.tensor([[0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64)
    causal = torch.ones(4, 4).tril()
    sums = _Sums()
    sums.add([(causal / causal.sum(dim=1, keepdim=True))[None, None]], counts, is_causal=True)
    shares = sums.shares(("CDS", "intron"), 1)
    # queries 2 and 3 see two, then three tokens of bases, and so both classes: 1/2 + 1/3 of 2
    assert shares.expected_C.tolist() == pytest.approx([5 / 12, 7 / 12])
    # weights 1/3, 1/4 on CDS and 1/3, 2/4 on intron
    assert shares.share_CLH[:, 0, 0].tolist() == pytest.approx([7 / 17, 10 / 17])
    assert shares.specials_LH[0, 0] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    with pytest.raises(ConfigError, match=r"no token of 1 samples sees two classes"):
        alone = _Sums()
        alone.add([torch.ones(1, 1, 4, 4)], torch.tensor([[0, 0], [1, 0], [1, 0], [1, 0]]).double(), is_causal=False)
        alone.shares(("CDS", "intron"), 1)


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("genome"), np.random.default_rng(8)
    (folder / "valid.fa").write_text(f">a\n{''.join(rng.choice(list('ACGT'), 900))}\n")
    rows = ["gene\t101\t400\t.\t+\t.\tID=g", "CDS\t101\t180\t.\t+\t0\tID=c;Parent=g", "CDS\t301\t400\t.\t+\t1\tID=c;Parent=g"]
    (folder / "genes.gff3").write_text("##gff-version 3\n" + "".join(f"a\tx\t{row}\n" for row in rows))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, genome, tmp_path, capsys):
    folder, _ = write_folder(tmp_path, family)
    arguments = ["evaluate", str(folder), "--data", str(genome / "valid.fa"), "data.sequence_length=32", "train.device=cpu"]
    extra = ["--regions", f"genes={genome / 'genes.gff3'}", "--attention", str(tmp_path / "out" / "a.tsv"), "--attention-samples", "40"]
    assert main([*arguments, *extra, "--json"]) == 0
    [(name, result)] = json.loads(capsys.readouterr().out).items()
    elements = result["attention"]["elements"]
    assert 4 < result["attention"]["num_samples"] <= 40 and set(elements) <= {"CDS", "intron", "intergenic"} and len(elements) >= 2
    for kind, values in result["regions"]["class"].items():
        assert values["perplexity"] == pytest.approx(2 ** values["bits_per_base"]), kind
    with (tmp_path / "out" / "a.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    shape = np.array(elements["CDS"]["enrichment"]).shape
    assert len(rows) == len(elements) * shape[0] * shape[1]
    for layer in range(1, shape[0] + 1):
        of_head = [row for row in rows if row["layer"] == str(layer) and row["head"] == "0"]
        assert sum(float(row["share"]) for row in of_head) == pytest.approx(1, abs=1e-4)
        assert sum(float(row["expected"]) for row in of_head) == pytest.approx(1, abs=1e-4)
    assert float(rows[0]["enrichment"]) == pytest.approx(elements[rows[0]["class"]]["enrichment"][0][0], rel=1e-4)
    assert (tmp_path / "out" / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert 0 < float(rows[0]["on_specials"]) < 1 and rows[0]["set"] == name


def test_what_cannot_be(genome, tmp_path, capsys):
    folder, _ = write_folder(tmp_path, "generator")
    arguments = ["evaluate", str(folder), "--data", str(genome / "valid.fa"), "data.sequence_length=32", "train.device=cpu"]
    assert main([*arguments, "--attention", str(tmp_path / "a.tsv")]) == 2
    assert "needs an annotation of the set 'valid'. Give --regions FILE" in capsys.readouterr().err.replace("data-valid", "valid")
    assert main([*arguments, "--attention", str(tmp_path / "a.txt")]) == 2
    assert "does not end in .tsv" in capsys.readouterr().err


def test_a_picture_of_two_sets(tmp_path):
    rng = np.random.default_rng(0)

    def of(classes):
        share = rng.random((len(classes), 12, 16))
        nothing = np.zeros((12, 16))
        return AttentionShares(classes, share / share.sum(axis=0), np.full(len(classes), 1 / len(classes)), share, nothing, nothing, 3)

    draw_heat_maps(tmp_path / "p.png", {"valid": of(("CDS", "UTR", "intron")), "test": of(("CDS", "intron"))}, "a model")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
