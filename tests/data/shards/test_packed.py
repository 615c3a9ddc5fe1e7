"""Shards at 2 bits per base: the same bases, samples and reports as ASCII ones; damage is named."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from dnapretrain import _core
from dnapretrain.cli import main
from dnapretrain.config import DataConfig, MaskingConfig, TokenizerConfig
from dnapretrain.config_file import config_from_dict
from dnapretrain.data.audit.dedup import Duplicates
from dnapretrain.data.audit.homology import Leakage, SketchSettings
from dnapretrain.data.audit.locate import Wanted, locate
from dnapretrain.data.audit.was_seen import was_seen
from dnapretrain.data.genes.extract import extract
from dnapretrain.data.look.inspect import format_inspection, inspect_shard
from dnapretrain.data.sampling.lengths import train_stream
from dnapretrain.data.sampling.samples import held_out_streams
from dnapretrain.data.shards.contigs import Assembly
from dnapretrain.data.shards.encode import convert_shard
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard, shard_file, verify_shard
from dnapretrain.data.tokens.bpe import train_bpe
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.data.variants.haplotypes import make_haplotypes
from dnapretrain.errors import ConfigError, DataError
from dnapretrain.evaluate.markov import markov_ladder

BLOCK = 65_536
KINDS = ("bin", "idx", "bed", "json")


def arrays_of(batch) -> tuple[np.ndarray, ...]:
    return batch.tokens, batch.labels, batch.loss_mask


def random_bases(seed: int, length: int, ambiguous: float = 0.02) -> str:
    """Runs of A, C, G, T in either case, of N, and single IUPAC codes, of very different lengths."""
    rng = random.Random(seed)
    text = ""
    while len(text) < length:
        run = rng.choice([1, 1, 2, 3, 4, 5, 7, 8, 9, 30, 300, 3000])
        kind = rng.random()
        if kind < ambiguous:
            text += rng.choice(["N" * min(run, 9), "n" * min(run, 9), rng.choice("RYKMSWBDHVry")])
        else:
            letters = "".join(rng.choices("ACGT", k=run))
            text += letters if kind < 0.6 else letters.lower()
    return text[:length]


def slow_pack(text: str) -> tuple[bytes, bytes]:
    """`.bin` and `.exceptions` as FORMAT.md has them, base by base."""
    codes = [{"A": 0, "C": 1, "G": 2, "T": 3}.get(base.upper(), 0) for base in text]
    packed = bytes(sum(code << 2 * place for place, code in enumerate(codes[at : at + 4])) for at in range(0, len(codes), 4))
    states = [(0x20 if base.islower() else 0) if base.upper() in "ACGT" else ord(base) for base in text]
    changes = [(at, state) for at, state in enumerate(states) if state != (states[at - 1] if at else 0)]
    blocks = -(-len(text) // BLOCK)
    before = [sum(at < block * BLOCK for at, _ in changes) for block in range(blocks)] + [len(changes)]
    head = b"DNAEXCPT" + struct.pack("<QQQ", 1, len(text), len(changes))
    offsets = b"".join(struct.pack("<H", at % BLOCK) for at, _ in changes)
    return packed, head + struct.pack(f"<{blocks + 1}q", *before) + offsets + bytes(state for _, state in changes)


def write_fasta(path: Path, records: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in records.items()))
    return path


def make_pair(folder: Path, records: dict[str, str], name: str = "asm") -> dict[str, Path]:
    """The prefixes of one shard in both encodings; the folders differ, so that the assembly does not."""
    fasta = write_fasta(folder / f"{name}.fa", records)
    pair = {encoding: folder / encoding / name for encoding in ("ascii", "2bit")}
    for encoding, prefix in pair.items():
        preprocess([fasta], prefix, encoding=encoding)
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    shared = random_bases(1, 40_000)
    records = {"chr1": random_bases(2, 150_001), "chr2": shared + "N" * 50 + random_bases(3, 30_000), "chr3": random_bases(4, 20_003)}
    records |= {"copy": shared, "tiny": "A"}
    return make_pair(tmp_path_factory.mktemp("pair"), records)


# ---- the format ------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 200_003])
def test_files_equal_plain_python(tmp_path: Path, length: int) -> None:
    text = random_bases(length, length, ambiguous=0.3)
    prefix = make_pair(tmp_path, {"x": text}, "s")["2bit"] if "N" * 10 not in text.upper() else None
    if prefix is None:  # runs of N next to each other
        preprocess([write_fasta(tmp_path / "s.fa", {"x": text})], tmp_path / "s", min_n_run=1 << 30, encoding="2bit")
        prefix = tmp_path / "s"
    packed, exceptions = slow_pack(text)
    assert shard_file(prefix, "bin").read_bytes() == packed
    assert shard_file(prefix, "exceptions").read_bytes() == exceptions
    shard = open_shard(prefix)
    assert np.asarray(shard.bases).tobytes().decode() == text
    assert len(shard.bases) == length
    assert verify_shard(prefix) == shard.digest


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "N" * 9, "R", "ACGT" * 50_000, "g" * BLOCK + "T" * BLOCK + "n" * 3 + "c" * BLOCK, "Aa" * 40_000]
)
def test_extreme_texts(text: str) -> None:
    array = np.frombuffer(text.encode(), np.uint8)
    packed, offsets, states, counts, state = _core.pack_bases(array, 0)
    slow_bin, slow_exceptions = slow_pack(text)
    before = np.concatenate([[0], np.cumsum(counts)])
    assert packed.tobytes() == slow_bin
    assert slow_exceptions[32:] == before.astype("<i8").tobytes() + offsets.tobytes() + states.tobytes()
    assert state == (states[-1] if len(states) else 0)
    bases = _core.PackedBases(packed, len(text), before, offsets, states)
    rng = random.Random(len(text))
    for _ in range(300):
        start = rng.randrange(len(text) + 1)
        end = rng.randint(start, min(len(text), start + rng.choice([1, 5, 40, 70_000])))
        assert bases[start:end].tobytes().decode() == text[start:end]


def test_both_paths_of_unpacking_equal_plain_python() -> None:
    every = np.concatenate([np.arange(256), np.random.default_rng(1).integers(0, 256, 1000)]).astype(np.uint8)
    expected = "".join("ACGT"[byte >> 2 * place & 3] for byte in every.tolist() for place in range(4))
    for start in (0, 1, 5):
        for end in [*range(start, start + 40), len(every)]:
            for plain in (True, False):
                assert _core.unpack_bytes(every[start:end], plain).tobytes().decode() == expected[4 * start : 4 * end]


def test_pieces_of_any_number_of_blocks_pack_alike() -> None:
    array = np.frombuffer(random_bases(5, 5 * BLOCK + 77).encode(), np.uint8)
    whole = _core.pack_bases(array, 0)
    for step in (BLOCK, 2 * BLOCK):
        parts, state = [], 0
        for at in range(0, len(array), step):
            parts.append(_core.pack_bases(array[at : at + step], state))
            state = parts[-1][4]
        assert state == whole[4]
        for column in range(4):
            assert np.array_equal(np.concatenate([part[column] for part in parts]), whole[column])


def test_windows_and_slices(pair: dict[str, Path]) -> None:
    letters, packed = open_shard(pair["ascii"]).bases, open_shard(pair["2bit"]).bases
    assert isinstance(letters, np.memmap) and isinstance(packed, _core.PackedBases)
    assert len(letters) == len(packed)
    rng = np.random.default_rng(0)
    starts = np.concatenate([rng.integers(0, len(letters), 3000), [BLOCK + d for d in range(-9, 10)], [0, 1, 2, 3, len(letters) - 1]])
    for start, length in zip(starts.tolist(), rng.integers(0, 300, len(starts)).tolist(), strict=True):
        assert np.array_equal(packed[start : start + length], letters[start : start + length])
    for part in (
        slice(None),
        slice(-7, None),
        slice(5, 3),
        slice(len(letters), None),
        slice(9, -9),
        slice(0, 10**15),
        slice(10**9, 10**10),
    ):
        assert np.array_equal(packed[part], letters[part])
    assert np.asarray(packed).dtype == np.uint8
    with pytest.raises(ValueError, match="steps of 1"):
        packed[::2]


def test_bytes_that_are_no_letters_and_tables_that_do_not_fit() -> None:
    for byte in (0, 0x20, ord("*"), ord("@"), ord("["), 0x80, 0xFF):
        with pytest.raises(ValueError, match=f"byte {byte} at base 5 is no letter"):
            _core.pack_bases(np.array([65, 67, 71, 84, 65, byte, 65], np.uint8), 0)
    ok = (np.zeros(2, np.uint8), 5, np.array([0, 1]), np.array([4], np.uint16), np.array([32], np.uint8))
    assert _core.PackedBases(*ok)[:].tobytes() == b"AAAAa"
    wrong = {0: np.zeros(1, np.uint8), 1: -1, 2: np.array([0, 2]), 3: np.array([], np.uint16), 4: np.array([], np.uint8)}
    for place, value in wrong.items():
        with pytest.raises(ValueError, match=r"do not (hold|fit)"):
            _core.PackedBases(*[value if number == place else item for number, item in enumerate(ok)])
    with pytest.raises(ValueError, match="do not fit"):
        _core.PackedBases(np.zeros(BLOCK // 2, np.uint8), 2 * BLOCK, np.array([0, 2, 1]), np.zeros(1, np.uint16), np.zeros(1, np.uint8))


def test_changes_out_of_order_never_write_outside() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        bases, changes = int(rng.integers(1, 3 * BLOCK)), int(rng.integers(0, 50))
        blocks = -(-bases // BLOCK)
        before = np.sort(rng.integers(0, changes + 1, blocks + 1))
        before[0], before[-1] = 0, changes
        offsets, states = rng.integers(0, BLOCK, changes).astype(np.uint16), rng.integers(0, 256, changes).astype(np.uint8)
        packed = _core.PackedBases(rng.integers(0, 256, -(-bases // 4)).astype(np.uint8), bases, before, offsets, states)
        start = int(rng.integers(0, bases))
        assert len(packed[start : start + 1000]) == min(1000, bases - start)


def test_megatron_refuses_packed_bases(pair: dict[str, Path]) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    assert len(IndexedDataset(str(pair["ascii"])))
    with pytest.raises(ValueError, match="130"):
        IndexedDataset(str(pair["2bit"]))


# ---- from one encoding to the other ----------------------------------------------------------


def test_there_and_back_again(pair: dict[str, Path], tmp_path: Path) -> None:
    there = convert_shard(pair["ascii"], tmp_path / "there", "2bit")
    for kind in (*KINDS, "exceptions"):
        assert shard_file(tmp_path / "there", kind).read_bytes() == shard_file(pair["2bit"], kind).read_bytes(), kind
    back = convert_shard(tmp_path / "there", tmp_path / "back", "ascii")
    for kind in KINDS:
        assert shard_file(tmp_path / "back", kind).read_bytes() == shard_file(pair["ascii"], kind).read_bytes(), kind
    assert there["encoding"] == "2bit"
    assert there["bases"] == back["files"]["bin"]
    assert "encoding" not in back and "bases" not in back
    assert open_shard(pair["ascii"]).digest == open_shard(pair["2bit"]).digest == there["bases"]["xxh3_128"]
    assert not list(tmp_path.glob(".*"))


def test_a_shard_is_replaced_in_place_and_leaves_no_exceptions_behind(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, {"x": random_bases(8, 9000)})
    text = np.asarray(open_shard(pair["2bit"]).bases).tobytes()
    with pytest.raises(DataError, match="exists already"):
        convert_shard(pair["2bit"], pair["2bit"], "ascii")
    convert_shard(pair["2bit"], pair["2bit"], "ascii", overwrite=True)
    assert not shard_file(pair["2bit"], "exceptions").exists()
    assert open_shard(pair["2bit"]).bases.tobytes() == text
    preprocess([tmp_path / "asm.fa"], pair["2bit"], encoding="2bit", overwrite=True)
    assert np.asarray(open_shard(pair["2bit"]).bases).tobytes() == text
    preprocess([tmp_path / "asm.fa"], pair["2bit"], overwrite=True)
    assert sorted(path.name for path in pair["2bit"].parent.iterdir()) == ["asm.bed", "asm.bin", "asm.idx", "asm.json"]


def test_conversions_that_cannot_be(pair: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="encoded in 2bit already"):
        convert_shard(pair["2bit"], tmp_path / "x", "2bit")
    with pytest.raises(ConfigError, match=r"--encoding = 4bit is not known\. Give one of ascii, 2bit"):
        convert_shard(pair["2bit"], tmp_path / "x", "4bit")
    with pytest.raises(ConfigError, match="--encoding = 4bit"):
        preprocess([tmp_path / "none.fa"], tmp_path / "x", encoding="4bit")
    for kind in KINDS:
        shutil.copy(shard_file(pair["ascii"], kind), shard_file(tmp_path / "changed", kind))
    data = bytearray(shard_file(tmp_path / "changed", "bin").read_bytes())
    data[70_000] = ord("A") if data[70_000] != ord("A") else ord("C")
    shard_file(tmp_path / "changed", "bin").write_bytes(data)
    with pytest.raises(DataError, match="the file was changed"):
        convert_shard(tmp_path / "changed", tmp_path / "x", "2bit")
    data[70_000] = 7
    shard_file(tmp_path / "changed", "bin").write_bytes(data)
    with pytest.raises(DataError, match="byte 7 at base 70000 is no letter"):
        convert_shard(tmp_path / "changed", tmp_path / "x", "2bit")
    assert not list(tmp_path.glob("x*")) and not list(tmp_path.glob(".*"))


# ---- damage ----------------------------------------------------------------------------------


def damaged(pair: dict[str, Path], folder: Path) -> Path:
    for kind in (*KINDS, "exceptions"):
        shutil.copy(shard_file(pair["2bit"], kind), shard_file(folder / "d", kind))
    return folder / "d"


def edit_manifest(prefix: Path, change) -> None:
    manifest = json.loads(shard_file(prefix, "json").read_text())
    change(manifest)
    shard_file(prefix, "json").write_text(json.dumps(manifest))


def set_bytes(path: Path, at: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(encoding="3bit"), "encoding '3bit' is not known"),
        (lambda manifest: manifest.pop("bases"), "'files' or 'bases' of packed bases is damaged"),
        (lambda manifest: manifest["files"].pop("exceptions"), "'files' or 'bases' of packed bases is damaged"),
        (lambda manifest: manifest.pop("encoding"), "not the index of a base shard|lies outside"),
        (lambda manifest: manifest["bases"].update(size=manifest["bases"]["size"] + 1), "not the index of a base shard"),
    ],
)
def test_damaged_manifests(pair: dict[str, Path], tmp_path: Path, change, message: str) -> None:
    prefix = damaged(pair, tmp_path)
    edit_manifest(prefix, change)
    with pytest.raises(DataError, match=message):
        open_shard(prefix)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"X", "they begin with DNAEXCPT"),
        (8, b"\2", "version 2, this version reads 1"),
        (16, b"\0\0\0", "do not fit the"),
        (24, b"\0\0\0", "do not fit the"),
        (32, b"\1", "the changes do not fit"),
        (40, b"\xff\xff\xff", "the changes do not fit"),
    ],
)
def test_damaged_exceptions(pair: dict[str, Path], tmp_path: Path, at: int, value: bytes, message: str) -> None:
    prefix = damaged(pair, tmp_path)
    set_bytes(shard_file(prefix, "exceptions"), at, value)
    with pytest.raises(DataError, match=message):
        open_shard(prefix)


def test_cut_and_changed_files(pair: dict[str, Path], tmp_path: Path) -> None:
    prefix = damaged(pair, tmp_path)
    exceptions = shard_file(prefix, "exceptions")
    whole = exceptions.read_bytes()
    exceptions.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="cut or replaced"):
        open_shard(prefix)
    exceptions.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_shard(prefix)
    exceptions.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    open_shard(prefix)
    with pytest.raises(DataError, match=r"\.exceptions: XXH3-128 is"):
        verify_shard(prefix)
    # A manifest that agrees with the changed file: the bases do not.
    import xxhash

    digest = xxhash.xxh3_128_hexdigest(exceptions.read_bytes())
    edit_manifest(prefix, lambda manifest: manifest["files"]["exceptions"].update(xxh3_128=digest))
    with pytest.raises(DataError, match="its bases have XXH3-128"):
        verify_shard(prefix)
    with pytest.raises(DataError, match="its bases are not those of the manifest"):
        convert_shard(prefix, tmp_path / "x", "ascii")
    set_bytes(shard_file(damaged(pair, tmp_path), "idx"), 17, b"\1")
    with pytest.raises(DataError, match=r"not the index of a base shard|lies outside"):
        open_shard(prefix)


# ---- all who read shards ---------------------------------------------------------------------


TOKENIZERS = {
    "nucleotide": {},
    "kmer": {"k": 6},
    "nt_v2": {},
    "aido_dna": {},
    "bpe": {"file": "bpe.json"},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "sampling"), [*((kind, "windows") for kind in TOKENIZERS), ("nucleotide", "packed"), ("kmer", "packed")])
def test_samples_are_the_same(pair: dict[str, Path], tmp_path: Path, kind: str, sampling: str, masked: bool) -> None:
    settings = dict(TOKENIZERS[kind])
    if kind == "bpe":
        train_bpe([pair["ascii"]], tmp_path / "bpe.json", vocab_size=200)
        settings["file"] = tmp_path / "bpe.json"
    tokenizer = build_tokenizer(TokenizerConfig(kind=kind, **settings, add_eos=masked))
    found = {}
    for encoding, prefix in pair.items():
        data = DataConfig(
            train=str(prefix),
            sequence_length=250,
            sampling=sampling,
            reverse_complement=0.5,
            random_phase=kind == "kmer" and not masked,
            lowercase_weight=0.25,
            split={"by": "contig", "valid_contigs": ["chr3"]},
            masking=MaskingConfig(mlm_probability=0.15) if masked else MaskingConfig(),
        )
        streams = {"train": train_stream(data, tokenizer), **held_out_streams(data, tokenizer)}
        assert set(streams) == {"train", "valid"}
        found[encoding] = []
        for stream in streams.values():
            ids = np.arange(min(stream.num_samples, 600))
            batch = stream.batch(ids)
            reads = [[(str(locus), bases.tobytes()) for locus, bases in stream.read(number)] for number in ids[:150].tolist()]
            plain = {key: value for key, value in stream.report().items() if key != "sources"}
            found[encoding].append((stream.digest, stream.cut(), plain, reads, *(array.tobytes() for array in arrays_of(batch))))
    assert found["ascii"] == found["2bit"]
    assert len(found["ascii"][0][3]) == 150


def run_config(pair: dict[str, Path], folder: Path, encoding: str):
    tree = {
        "data": {
            "train": [{"prefix": str(pair[encoding])}],
            "split": {"by": "contig", "valid_contigs": ["chr3", "copy"]},
            "sequence_length": 64,
            "reverse_complement": 0.5,
        },
        "tokenizer": {"kind": "bpe", "file": str(folder / "bpe.json")},
        "model": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 64},
        "optim": {"lr": 1e-3},
        "train": {"run_dir": str(folder), "train_steps": 4, "micro_batch_size": 2, "global_batch_size": 8, "device": "cpu"},
    }
    return config_from_dict(tree)


def test_audits_are_the_same(pair: dict[str, Path], tmp_path: Path) -> None:
    how = SketchSettings(21, 2, 700)
    for encoding, prefix in pair.items():
        (tmp_path / encoding).mkdir()
        train_bpe([prefix], tmp_path / encoding / "bpe.json", vocab_size=100, both_strands=True, max_bases=100_000)
    assert (tmp_path / "ascii" / "bpe.json").read_bytes() == (tmp_path / "2bit" / "bpe.json").read_bytes()
    shutil.copy(tmp_path / "ascii" / "bpe.json", tmp_path / "bpe.json")
    configs = {encoding: run_config(pair, tmp_path, encoding) for encoding in pair}
    duplicates = {encoding: Duplicates([prefix], how, 0.9) for encoding, prefix in pair.items()}
    assert duplicates["ascii"].report()["clusters"] == duplicates["2bit"].report()["clusters"]
    assert list(duplicates["ascii"].bed()) == list(duplicates["2bit"].bed()) != []
    leaks = {encoding: Leakage(config, how, 0.5) for encoding, config in configs.items()}
    assert leaks["ascii"].report() == leaks["2bit"].report()
    assert leaks["ascii"].report()["sets"]["valid"]["hashes_in_training"] > 10_000
    seen = {encoding: was_seen(config, ["asm:chr2:1-500"], 4) for encoding, config in configs.items()}
    plain, packed = ([str(item).replace(f"/{encoding}/", "/") for item in seen[encoding]] for encoding in ("ascii", "2bit"))
    assert plain == packed
    rows = {}
    for encoding, config in configs.items():
        stream = train_stream(config.data, build_tokenizer(config.tokenizer))
        rows[encoding] = [row | {"source": ""} for row in locate(stream, [Wanted(sample=number) for number in range(50)], with_bases=True)]
    assert rows["ascii"] == rows["2bit"]


def test_inspection_markov_and_contigs_are_the_same(pair: dict[str, Path]) -> None:
    seen = {encoding: inspect_shard(prefix, check=True) for encoding, prefix in pair.items()}
    own = {"prefix", "encoding", "stored_bytes"}
    assert {key: value for key, value in seen["ascii"].items() if key not in own} == {
        key: value for key, value in seen["2bit"].items() if key not in own
    }
    assert seen["2bit"]["stored_bytes"] == sum(shard_file(pair["2bit"], kind).stat().st_size for kind in ("bin", "exceptions"))
    assert f"encoding     2bit, {seen['2bit']['stored_bytes']:,} bytes" in format_inspection(seen["2bit"])
    assert "encoding" not in format_inspection(seen["ascii"])
    ladders, regions = [], []
    for prefix in pair.values():
        data = DataConfig(train=str(prefix), sequence_length=100, split={"by": "contig", "valid_contigs": ["chr3"]})
        tokenizer = build_tokenizer(TokenizerConfig())
        ladders.append(
            markov_ladder(train_stream(data, tokenizer).segments(), held_out_streams(data, tokenizer)["valid"].segments(), range(4))
        )
        assembly = Assembly(open_shard(prefix), None)
        regions.append([assembly.read(assembly.contigs["chr2"], start, start + 500)[0].tobytes() for start in range(0, 60_000, 450)])
    assert ladders[0] == ladders[1]
    assert regions[0] == regions[1]


def test_genes_and_haplotypes_are_cut_from_either(pair: dict[str, Path], tmp_path: Path) -> None:
    text = np.asarray(open_shard(pair["ascii"]).bases).tobytes().decode()
    rows = [("chr1", 100, 5000, "+"), ("chr1", 65_000, 66_000, "-"), ("chr2", 39_990, 40_100, "-"), ("chr3", 1, 20_003, "+")]
    gff = "".join(f"{contig}\tx\tgene\t{start}\t{end}\t.\t{strand}\t.\tID=g{start}\n" for contig, start, end, strand in rows)
    (tmp_path / "a.gff3").write_text("##gff-version 3\n" + gff)
    records = []
    for at in range(50, 149_000, 997):
        ref = text[at : at + 2].upper()
        if set(ref) <= set("ACGT"):
            records.append(f"chr1\t{at + 1}\t.\t{ref}\t{ref[0]},{ref}T\t.\t.\t.\tGT\t0|1\t2|{at % 2}\n")
    (tmp_path / "v.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\ts2\n" + "".join(records)
    )
    made = {}
    for encoding, prefix in pair.items():
        extract(prefix, tmp_path / "a.gff3", tmp_path / f"{encoding}-genes")
        make_haplotypes(prefix, [tmp_path / "v.vcf"], tmp_path / f"{encoding}-haplotypes")
        made[encoding] = [
            shard_file(tmp_path / f"{encoding}-{what}", kind).read_bytes()
            for what, kinds in (("genes", ("bin", "idx", "bed", "labels.tsv")), ("haplotypes", ("bin", "idx", "bed", "edits")))
            for kind in kinds
        ]
    assert made["ascii"] == made["2bit"]
    # Their own shards are packed with all that lies beside them.
    for what, extra in (("genes", "labels.tsv"), ("haplotypes", "edits")):
        source = tmp_path / f"ascii-{what}"
        convert_shard(source, tmp_path / what, "2bit")
        convert_shard(tmp_path / what, tmp_path / f"{what}-back", "ascii")
        packed, plain = open_shard(tmp_path / what), open_shard(source)
        assert verify_shard(tmp_path / what) == plain.digest
        assert np.array_equal(np.asarray(packed.bases), plain.bases)
        assert packed.coordinates.contig == plain.coordinates.contig
        for kind in (*KINDS, extra):
            assert shard_file(tmp_path / f"{what}-back", kind).read_bytes() == shard_file(source, kind).read_bytes()


def test_command_line(pair: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = pair["ascii"].parent.parent / "asm.fa"
    assert main(["preprocess", str(fasta), "--output", str(tmp_path / "s"), "--encoding", "2bit"]) == 0
    assert "encoding     2bit" in capsys.readouterr().out
    assert shard_file(tmp_path / "s", "json").read_bytes() == shard_file(pair["2bit"], "json").read_bytes()
    assert main(["inspect", str(tmp_path / "s"), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["encoding"] == "2bit"


def test_a_packed_shard_that_is_no_smaller_is_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocess([write_fasta(tmp_path / "x.fa", {"x": "Ac" * 5000})], tmp_path / "x", encoding="2bit")
    assert "no smaller than ASCII" in capsys.readouterr().err
    preprocess([write_fasta(tmp_path / "y.fa", {"y": "ACgt" * 50 + "A" * 5000})], tmp_path / "y", encoding="2bit")
    assert "no smaller" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["genomes/scerevisiae_R64_chrI-X_Mito.fa.gz", "human/GRCh37_chr20_1-2500000.fa.gz", "human/human_alt_NT_187562.1_softmasked.fa.gz"],
)
def test_real_genomes(tmp_path: Path, name: str) -> None:
    if "DNAPRETRAIN_TEST_DATA" not in os.environ:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    source = Path(os.environ["DNAPRETRAIN_TEST_DATA"]) / name
    for encoding in ("ascii", "2bit"):
        preprocess([source], tmp_path / encoding, encoding=encoding)
    plain, packed = open_shard(tmp_path / "ascii"), open_shard(tmp_path / "2bit")
    assert np.array_equal(np.asarray(packed.bases), plain.bases)
    assert verify_shard(tmp_path / "2bit") == verify_shard(tmp_path / "ascii")
    assert len(plain.bases) / inspect_shard(tmp_path / "2bit")["stored_bytes"] > 3.7
    tokenizer = build_tokenizer(TokenizerConfig(kind="kmer"))
    batches = []
    for encoding in ("ascii", "2bit"):
        stream = train_stream(
            DataConfig(train=str(tmp_path / encoding), sequence_length=512, random_phase=True, reverse_complement=0.5), tokenizer
        )
        batches.append((stream.digest, *(array.tobytes() for array in arrays_of(stream.batch(np.arange(400))))))
    assert batches[0] == batches[1]
