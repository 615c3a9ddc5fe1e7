"""Embeddings: pooling against a plain loop over single sequences, strands, windows, files in every format, pictures."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_folders import write_folder

from dnapretrain.adapt.backbones.backbone import load_backbone
from dnapretrain.adapt.backbones.encoding import TokenBatch
from dnapretrain.adapt.embedding import embed as embed_module
from dnapretrain.adapt.embedding.embed import EmbedSettings, embed_file, embed_sequences, embed_tokens, pool
from dnapretrain.adapt.pictures import principal_components
from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.adapt.sequences.tables import TableOptions
from dnapretrain.cli import main
from dnapretrain.errors import ConfigError, DataError

MODELS = ("generator", "aido-dna")  # <s> alone before the bases of a decoder; [CLS] and [SEP] around those of an encoder
SEQUENCES = ["ACGTGACCTTAGGATC", "TTGACA", "ACGTNACGTACGTACGTACGTACGTAAATTT", "GGGCCC", "ACGTGACCTTAGGATC"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_folder(tmp_path_factory.mktemp(name), name)[0] for name in MODELS}


@pytest.fixture(scope="module")
def backbones(folders):
    return {name: load_backbone(folders[name]) for name in MODELS}


def plain(backbone, sequence, pooling, layer):
    """One sequence without padding, by a loop over its tokens."""
    tokenizer = backbone.encoder.tokenizer
    ids = tokenizer.encode(sequence[: len(sequence) // tokenizer.k * tokenizer.k]).tolist()
    first = [tokenizer.bos_id]
    last = [tokenizer.eos_id] if backbone.is_encoder else []
    with torch.no_grad():
        states = backbone.model(torch.tensor([first + ids + last]), output_hidden_states=True).hidden_states[layer][0]
    vectors = [states[at].numpy() for at in range(1, 1 + len(ids))]
    if pooling == "mean":
        return sum(vectors) / len(vectors)
    return {"cls": states[0].numpy(), "last": vectors[-1], "max": np.max(vectors, axis=0)}[pooling]


def test_pooling_by_hand():
    """Two sequences of 2 and 1 tokens of bases between specials; what stands at padding must not matter."""
    states = torch.tensor([[[9.0, 9], [1, 4], [3, -2], [8, 8]], [[7, 7], [5, -6], [8, 8], [torch.nan, torch.inf]]])
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    bases = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0]]).bool()
    batch = TokenBatch(np.arange(2), torch.zeros(2, 4, dtype=torch.long), real, bases)
    wanted = {"mean": [[2, 1], [5, -6]], "max": [[3, 4], [5, -6]], "last": [[3, -2], [5, -6]], "cls": [[9, 9], [7, 7]]}
    assert {pooling: pool(states, batch, pooling).tolist() for pooling in wanted} == wanted


@pytest.mark.parametrize("name", MODELS)
def test_pooling_equals_the_plain_loop(name, backbones):
    backbone = backbones[name]
    for pooling in ("mean", "last", "max", *(("cls",) if backbone.is_encoder else ())):
        found = embed_sequences(backbone, SEQUENCES, EmbedSettings((0, -1, 1), pooling, tokens_per_batch=40))
        assert found.shape == (5, 3, backbone.hidden_size) and found.dtype == np.float32
        for row, sequence in enumerate(SEQUENCES):
            for at, layer in enumerate((0, 2, 1)):
                assert found[row, at] == pytest.approx(plain(backbone, sequence, pooling, layer), abs=1e-4), (pooling, row, layer)


def test_both_strands_are_averaged(backbones):
    backbone = backbones["aido-dna"]
    counted = backbone.encoder.counts.sequences
    both = embed_sequences(backbone, SEQUENCES, EmbedSettings(both_strands=True))
    assert backbone.encoder.counts.sequences == counted + 5
    other = [reverse_complement_text(sequence) for sequence in SEQUENCES]
    assert other[1] == "TGTCAA" and other[2].endswith("NACGT")
    assert both == pytest.approx(embed_sequences(backbone, other, EmbedSettings(both_strands=True)), abs=1e-5)
    for row in range(5):
        wanted = (plain(backbone, SEQUENCES[row], "mean", -1) + plain(backbone, other[row], "mean", -1)) / 2
        assert both[row, 0] == pytest.approx(wanted, abs=1e-4)


def test_windows_weigh_each_token_the_same(folders):
    sequence = "ACGTGACCTTAGGATCA"  # 17 bases in windows of 6, 6, 5
    backbone = load_backbone(folders["aido-dna"], on_long="window", max_tokens=9)
    parts = (sequence[:6], sequence[6:12], sequence[12:])
    means, highest = [plain(backbone, part, "mean", -1) for part in parts], [plain(backbone, part, "max", -1) for part in parts]
    found = {
        pooling: embed_sequences(backbone, ["AC", sequence], EmbedSettings(pooling=pooling))[1, 0] for pooling in ("mean", "max", "last")
    }
    assert found["mean"] == pytest.approx((6 * means[0] + 6 * means[1] + 5 * means[2]) / 17, abs=1e-4)
    assert found["max"] == pytest.approx(np.max(highest, axis=0), abs=1e-4)
    assert found["last"] == pytest.approx(sum(plain(backbone, part, "last", -1) for part in parts) / 3, abs=1e-4)
    [_, (ids, vectors)] = embed_tokens(backbone, ["AC", sequence], EmbedSettings(pooling="none"))
    assert backbone.encoder.tokenizer.decode(ids.tolist()) == sequence
    assert vectors[6:12, 0].mean(axis=0) == pytest.approx(means[1], abs=1e-4)


def test_settings_that_do_not_fit(backbones):
    for settings, message in (
        (EmbedSettings(pooling="cls"), "sees itself alone"),
        (EmbedSettings(pooling="sum"), "pooling = sum"),
        (EmbedSettings(pooling="none", both_strands=True), "two strands"),
        (EmbedSettings((9,)), "layer 9"),
    ):
        with pytest.raises(ConfigError, match=message):
            embed_sequences(backbones["generator"], SEQUENCES, settings)


def write_csv(folder):
    rows = [f"s{row},{sequence},{'ab'[row % 2]}" for row, sequence in enumerate(SEQUENCES)]
    (folder / "t.csv").write_text("name,sequence,label\n" + "\n".join(rows) + "\n")
    return folder / "t.csv"


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".h5"])
def test_files_hold_what_was_embedded_in_order(suffix, backbones, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_module, "CHUNK_ROWS", 2)  # three chunks
    backbone, table, output = backbones["aido-dna"], write_csv(tmp_path), tmp_path / f"x{suffix}"
    settings = EmbedSettings((-1, 0))
    done = embed_file(backbone, table, output, settings, description={"model": "m"}, sample_rows=3)
    wanted = embed_sequences(backbone, SEQUENCES, settings)
    names, labels, vectors, about = read(output, wanted.shape)
    assert names == [f"s{row}" for row in range(5)] and labels == list("ababa")
    assert vectors == pytest.approx(wanted, abs=1e-5)
    assert about == {"pooling": "mean", "layers": [2, 0], "both_strands": False, "model": "m"}
    assert done.num_rows == 5 and len(done.sample.names) == 3 == len(set(done.sample.names))
    for name, own in zip(done.sample.names, done.sample.vectors, strict=True):
        assert own == pytest.approx(wanted[int(name[1:])], abs=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def read(path, shape):
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        columns = [np.array(table[f"layer_{layer}"].to_pylist(), np.float32) for layer in (2, 0)]
        about = json.loads(table.schema.metadata[b"dnapretrain"])
        return table["name"].to_pylist(), table["label"].to_pylist(), np.stack(columns, axis=1), about
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            assert arrays["layers"].tolist() == [2, 0]
            return arrays["names"].tolist(), arrays["label_label"].tolist(), arrays["embeddings"], json.loads(str(arrays["about"]))
    with h5py.File(path) as file:
        names, labels = (file[name].asstr()[:].tolist() for name in ("names", "labels/label"))
        return names, labels, file["embeddings"][:], json.loads(file.attrs["about"])


def test_a_label_called_name_does_not_take_the_place_of_names(backbones, tmp_path):
    (tmp_path / "t.csv").write_text("id,sequence,name\ns1,ACGT,gene\n")
    options = TableOptions(name_column="id", label_columns=("name",))
    embed_file(backbones["aido-dna"], tmp_path / "t.csv", tmp_path / "x.parquet", options=options)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["name"].to_pylist() == ["s1"] and table["label_name"].to_pylist() == ["gene"]


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".h5"])
def test_files_of_every_token(suffix, backbones, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_module, "CHUNK_ROWS", 2)
    backbone, output = backbones["aido-dna"], tmp_path / f"x{suffix}"
    done = embed_file(backbone, write_csv(tmp_path), output, EmbedSettings((1,), "none"))
    wanted = embed_tokens(backbone, SEQUENCES, EmbedSettings((1,), "none"))
    assert done.num_tokens == sum(map(len, SEQUENCES))
    if suffix == ".parquet":
        table = pq.read_table(output)
        assert ["".join(tokens) for tokens in table["tokens"].to_pylist()] == SEQUENCES
        rows = [np.array(values).reshape(-1, 1, backbone.hidden_size) for values in table["layer_1"].to_pylist()]
    else:
        if suffix == ".npz":
            arrays = np.load(output)
            tokens = arrays["tokens"].tolist()
        else:
            arrays = h5py.File(output)
            tokens = arrays["tokens"].asstr()[:].tolist()
        offsets = arrays["offsets"][:]
        assert offsets.tolist() == np.cumsum([0, *map(len, SEQUENCES)]).tolist() and "".join(tokens) == "".join(SEQUENCES)
        rows = np.split(arrays["embeddings"][:], offsets[1:-1])
    for found, (_, vectors) in zip(rows, wanted, strict=True):
        assert found == pytest.approx(vectors, abs=1e-5)


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".h5"])
def test_an_error_on_the_way_leaves_what_was_there(suffix, backbones, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_module, "CHUNK_ROWS", 2)
    table, output = write_csv(tmp_path), tmp_path / f"x{suffix}"
    output.write_text("before")
    table.write_text(table.read_text() + "s5,ACX,a\n")
    with pytest.raises(DataError, match=r"row 6 \(s5\) has 'X'"):
        embed_file(backbones["aido-dna"], table, output)
    assert output.read_text() == "before" and sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", f"x{suffix}"]


def test_principal_components_of_a_line():
    """Points on a line, 3 to 4: all variance is on the first component, in the points' own distances."""
    at = np.array([-2.0, 0, 1, 5])
    places, shares = principal_components(np.outer(at, [0.6, 0.8]) + 7)
    assert places[:, 0] == pytest.approx(at - 1) and places[:, 1] == pytest.approx(0) and shares == pytest.approx([1, 0])
    places, shares = principal_components(np.ones((3, 1)))
    assert not places.any() and not shares.any()


def test_the_verb(folders, tmp_path, capsys):
    table = write_csv(tmp_path)
    arguments = ["embed", folders["aido-dna"], table, "--output", tmp_path / "x.npz", "--layers", "0,-1", "--pooling", "max"]
    assert main([*map(str, arguments), "--picture", str(tmp_path / "x.png")]) == 0
    out = capsys.readouterr().out
    assert "x.npz: 5 sequences, layer 0, 2 of 2, 24 numbers each, pooling max" in out
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    for more, message in (
        (["--picture", "x.pdf"], "does not end in .png"),
        (["--layers", "a"], "no list of numbers"),
        (["--pooling", "none", "--picture", "x.png"], "Leave one out"),
        (["--on-long", "drop"], "on_long = drop"),
        (["--max-tokens", "10"], r"sequence 1 (s0) has 16 bases = 18 tokens with specials; the model reads 10"),
        (["--output", str(tmp_path / "x.txt")], "ends in none of"),
        (["--output", str(tmp_path / "none" / "x.npz")], "there is no folder"),
    ):
        assert main([*map(str, arguments), *more]) == 2
        assert message in capsys.readouterr().err
    assert main([*map(str, arguments), "--max-tokens", "10", "--on-long", "truncate"]) == 0
    assert "note: 3 of 5 sequences were truncated: 39 tokens were not read" in capsys.readouterr().err
    assert main([*map(str, arguments), "--random-weights", "1"]) == 0
