"""Corpora by name: manifests and lists, the split, one command from accessions to shards, and the lock that pins them."""

from __future__ import annotations

import functools
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from corpus_server import Fault, FaultyServer

from dnapretrain.cli import main
from dnapretrain.data.corpora import build as corpora_build
from dnapretrain.data.corpora import command
from dnapretrain.data.corpora.build import build_corpus
from dnapretrain.data.corpora.corpus import NCBI, Manifest, corpus_names, load_manifest, read_list
from dnapretrain.data.corpora.download import Downloader
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]
ASSEMBLIES = {f"GCF_{100 + number:09d}.1": f"ASM{number}v1" for number in range(5)}
DEMO = {
    "GCF_000840245.1_ViralProj14204": "lambda_NC_001416.1.fa.gz",
    "GCF_000819615.1_ViralProj14015": "phiX174_NC_001422.1.fa.gz",
    "GCF_009858895.2_ASM985889v3": "SARS-CoV-2_NC_045512.2.fa.gz",
}


def fasta(seed: int, size: int = 4000) -> bytes:
    sequence = "".join(np.random.default_rng(seed).choice(list("ACGT"), size))
    return gzip.compress(f">chr{seed}\n{sequence}\n".encode(), 1, mtime=0)


def path_of(accession: str, assembly: str) -> str:
    digits = accession[4:13]
    name = f"{accession}_{assembly}"
    return f"/all/{accession[:3]}/{digits[:3]}/{digits[3:6]}/{digits[6:]}/{name}/{name}_genomic.fna.gz"


def serve(server: FaultyServer, accession: str, assembly: str, data: bytes, checksums: bool = True) -> str:
    path = path_of(accession, assembly)
    folder, _, name = path.rpartition("/")
    server.files[path] = data
    if checksums:
        lines = f"{'0' * 32}  ./{name.replace('genomic', 'cds_from_genomic')}\n{md5(data).hexdigest()}  ./{name}\n"
        server.files[f"{folder}/md5checksums.txt"] = lines.encode()
    return path


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    server = FaultyServer()
    for seed, (accession, assembly) in enumerate(ASSEMBLIES.items()):
        serve(server, accession, assembly, fasta(seed))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Downloader", functools.partial(Downloader, backoff=0.01))


@pytest.fixture
def manifest_file(server: FaultyServer, tmp_path: Path) -> Path:
    entries = [{"accession": accession, "group": "viral"} for accession in ASSEMBLIES]
    tree = {"name": "five", "base_url": f"{server.url}/all", "split": {"valid_before": 1, "test_last": 2}, "entries": entries}
    path = tmp_path / "five.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(*arguments: Any) -> int:
    return main(["corpus", *map(str, arguments), "--timeout", "5"])


def build(manifest: Manifest, output: Path, **settings: Any) -> corpora_build.Outcome:
    return build_corpus(manifest, output, Downloader(retries=1, timeout=5, backoff=0.01), say=lambda _: None, **settings)


# Manifests and lists


def test_every_corpus_of_the_package_loads_or_says_what_it_lacks(tmp_path):
    assert corpus_names() == ["aido-dna", "demo-viruses", "dnabert2", "generator-eukaryote", "human-ref", "nt-multispecies"]
    for name in corpus_names():
        manifest = load_manifest(name)
        assert manifest.name == name and manifest.about and manifest.source and bool(manifest.entries) != bool(manifest.missing)
        if manifest.missing:
            with pytest.raises(ConfigError, match=f"corpus {name}: .*--accessions"):
                build(manifest, tmp_path / name)
            assert not (tmp_path / name).exists()


def published_list(path: Path, count: int) -> Path:
    rows = [
        f"https://ftp.ncbi.nlm.nih.gov/genomes/refseq/bacteria/Some_species/latest_assembly_versions/GCF_{n:09d}.1_ASM{n}v1/"
        f"GCF_{n:09d}.1_ASM{n}v1_genomic.fna.gz"
        for n in range(count)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(("name", "count"), [("nt-multispecies", 850), ("aido-dna", 796)])
def test_the_published_rule_splits_the_published_count(tmp_path, name, count):
    manifest = load_manifest(name, published_list(tmp_path / "urls.csv", count))
    sides = manifest.sides()
    assert [sides.count(side) for side in ("train", "valid", "test")] == [count - 100, 50, 50]
    assert sides == ["train"] * (count - 100) + ["valid"] * 50 + ["test"] * 50
    assert manifest.entries[7].accession == "GCF_000000007.1" and manifest.entries[7].assembly == "ASM7v1" and not manifest.entries[7].url
    assert manifest.notices() == []
    shorter = load_manifest(name, published_list(tmp_path / "urls.csv", 812))
    assert shorter.notices() == [f"812 entries, but the published corpus has {count}"]
    assert [shorter.sides().count(side) for side in ("train", "valid", "test")] == [712, 50, 50]


def test_a_skipped_entry_moves_no_other(tmp_path):
    rows = [f"GCF_{n:09d}.1\t{'withdrawn' if n in (2, 8) else ''}" for n in range(10)]
    (tmp_path / "l.tsv").write_text("accession\tskip\n" + "\n".join(rows) + "\n")
    manifest = Manifest.model_validate(
        {"name": "x", "split": {"valid_before": 2, "test_last": 3}, "entries": read_list(tmp_path / "l.tsv")}
    )
    assert manifest.sides() == ["train"] * 5 + ["valid"] * 2 + ["test"] * 3
    assert manifest.notices() == ["2 entries are marked to be skipped"]


def test_assembly_summary_is_a_list(tmp_path):
    columns = ["assembly_accession", "bioproject", "organism_name", "asm_name", "ftp_path", "group"]
    ftp = "https://ftp.ncbi.nlm.nih.gov/genomes/all/GCF/000/001/215/GCF_000001215.4_Release_6_plus_ISO1_MT"
    fly = ["GCF_000001215.4", "PRJ1", 'Drosophila "melanogaster', "Release 6 plus ISO1 MT", ftp, "invertebrate"]
    rows = [fly, ["GCF_000000001.1", "PRJ2", "A bacterium", "ASM1v1", "na", "bacteria"]]
    lines = ["##  See README_assembly_summary.txt", "#" + "\t".join(columns), *("\t".join(row) for row in rows)]
    (tmp_path / "assembly_summary_refseq.txt").write_text("\n".join(lines) + "\n")
    manifest = load_manifest("generator-eukaryote", tmp_path / "assembly_summary_refseq.txt")
    (entry,) = manifest.chosen()
    assert (entry.accession, entry.assembly, entry.species) == ("GCF_000001215.4", "Release_6_plus_ISO1_MT", 'Drosophila "melanogaster')
    assert "1 entries of the list are in other groups" in manifest.notices()[0]


def test_lists_take_accessions_and_addresses(tmp_path):
    (tmp_path / "l.txt").write_text(
        "\ufeffGCF_000005845.2 Escherichia coli\n\n# comment\nhttps://example.org/my%20genome.v2.fa.gz, \n"
        "ftp://ftp.ncbi.nlm.nih.gov/genomes/all/GCA/000/146/045/GCA_000146045.2_R64\n",
        encoding="utf-8",
    )
    entries = load_manifest(tmp_path / "l.txt").entries
    assert [entry.key for entry in entries] == ["GCF_000005845.2", "my_genome.v2", "GCA_000146045.2"]
    assert entries[0].species == "Escherichia coli" and entries[1].species == "" and entries[2].assembly == "R64"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NC_000913.3\n", r"l.txt:1: 'NC_000913.3' holds neither"),
        ("GCF_000005845.2\nGCF_000005845\n", r"l.txt:2: .*accession with its version"),
        ("GCF_000005845.2\nGCF_000005845.2\n", "'GCF_000005845.2' is in the list twice"),
        ("ftp://elsewhere.org/x.fa\n", r"l.txt:1: ftp://elsewhere.org/x.fa: addresses begin with https"),
        ("# nothing\n", "no entries"),
        ("accession,side\nGCF_000005845.2,training\n", r"entries.0.side: .*'training'"),
        ("accession,md5\nGCF_000005845.2,XYZ\n", r"entries.0.md5"),
    ],
)
def test_bad_lists(tmp_path, text, message):
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_manifest(tmp_path / "l.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nentrys: []\n", "entrys: unknown key; the nearest known one is 'entries'"),
        ("name: x\nentries: []\n", "'entries' is empty"),
        ("name: x\nentries: [{species: y}]\n", "entries.0: an entry needs 'accession'"),
        ("name: x\nsplit: {test_last: 1}\nentries: [{accession: GCF_000005845.2}]\n", "holds out 1 entries of 1"),
        ("name: x\nsplit: {}\nentries: [{accession: GCF_000005845.2, side: test}]\n", "remove one of them"),
        ("name: x\nentries: [{url: 'file:///etc/passwd'}]\n", r"entries.0.url"),
        ("- a\n", "not a manifest"),
        ("a: [\n", "not a YAML manifest"),
    ],
)
def test_bad_manifests(tmp_path, text, message):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_manifest(tmp_path / "m.yaml")


def test_other_files_of_an_assembly_are_not_taken_for_its_genome(tmp_path):
    folder = "https://ftp.ncbi.nlm.nih.gov/genomes/all/GCF/000/001/405/GCF_000001405.40_GRCh38.p14"
    names = ["", "/", "/GCF_000001405.40_GRCh38.p14_genomic.fna.gz"]
    other = ["/GCF_000001405.40_GRCh38.p14_cds_from_genomic.fna.gz", "/GCF_000001405.40_GRCh38.p14_genomic.gbff.gz"]
    for name in names + other:
        (tmp_path / "l.txt").write_text(folder + name)
        (entry,) = load_manifest(tmp_path / "l.txt").entries
        assert (entry.assembly == "GRCh38.p14" and entry.url is None) if name in names else entry.url == folder + name


def test_the_help_names_the_corpora(capsys):
    with pytest.raises(SystemExit):
        main(["corpus", "--help"])
    out = "".join(capsys.readouterr().out.split())
    assert all(name in out for name in corpus_names())


def test_an_unknown_name_meets_the_known_ones():
    with pytest.raises(ConfigError, match=r"one of the corpora aido-dna, .*Did you mean nt-multispecies\?"):
        load_manifest("nt-multi-species")


# From accessions to shards


def test_one_command(server, manifest_file, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(manifest_file, "--output", output) == 0
    names = [f"{accession}_{assembly}" for accession, assembly in ASSEMBLIES.items()]
    assert sorted(path.name for path in (output / "downloads").glob("*.gz")) == [f"{name}.fna.gz" for name in names]
    assert sorted(path.stem for path in (output / "shards").rglob("*.bin")) == sorted([*names[:2], "valid", "test"])
    assert open_shard(output / "shards" / "train" / names[0]).coordinates.locus(0) == f"{names[0]}:chr0:1-4000"
    assert open_shard(output / "shards" / "test").coordinates.assembly == names[3:]
    data = yaml.safe_load((output / "data.yaml").read_text())["data"]
    assert [(Path(item["prefix"]).name, item["weight"]) for item in data["train"]] == [(name, 4000.0) for name in names[:2]]
    assert set(data["valid"]) == {"valid", "test"}
    lock = json.loads((output / "corpus.lock.json").read_text())
    assert [item["side"] for item in lock["entries"]] == ["train", "train", "valid", "test", "test"]
    assert all(item["checked_by"] == "md5checksums.txt" and item["date"] and item["last_modified"] for item in lock["entries"])
    assert lock["entries"][0]["url"] == server.url + path_of(*next(iter(ASSEMBLIES.items())))
    assert "20,000 bases in 4 shards" in capsys.readouterr().out


def test_data_yaml_is_a_data_section(server, manifest_file, tmp_path):
    from dnapretrain.config import DataConfig

    assert run(manifest_file, "--output", tmp_path / "out", "--workers", 2) == 0
    section = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["data"]
    assert len(DataConfig.model_validate({**section, "sequence_length": 32}).train) == 2


def test_a_second_run_asks_nothing_and_changes_nothing(server, manifest_file, tmp_path):
    output = tmp_path / "out"
    run(manifest_file, "--output", output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    stamps = {path: path.stat().st_mtime_ns for path in before if path.suffix == ".bin"}
    server.requests.clear()
    assert run(manifest_file, "--output", output) == 0
    assert server.requests == []
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_broken_entry_does_not_lose_the_others(server, manifest_file, tmp_path, capsys):
    output = tmp_path / "out"
    first, second, *_ = [path_of(*item) for item in ASSEMBLIES.items()]
    gone = server.files.pop(first)
    folder = first.rpartition("/")[0]
    sums = server.files.pop(f"{folder}/md5checksums.txt")
    server.files[f"{second.rpartition('/')[0]}/md5checksums.txt"] = f"{'1' * 32}  ./{second.rpartition('/')[2]}\n".encode()
    assert run(manifest_file, "--output", output, "--retries", 2) == 1
    out = capsys.readouterr().out
    assert "failed: GCF_000000100.1: GCF_000000100.1: not on the server (HTTP 404" in out
    assert f"expected {'1' * 32}" in out and "2 of 5 genomes failed; the others are kept, and nothing is locked" in out
    assert not (output / "corpus.lock.json").exists()
    assert sorted(path.stem for path in (output / "shards").rglob("*.bin")) == ["test", "valid"]
    server.files[first], server.files[f"{folder}/md5checksums.txt"] = gone, sums
    serve(server, *list(ASSEMBLIES.items())[1], server.files[second])
    server.requests.clear()
    assert run(manifest_file, "--output", output) == 0
    assert {request.path for request in server.requests if request.path.endswith(".gz")} == {first, second}
    assert (output / "corpus.lock.json").exists()


def test_a_genome_that_is_no_dna_is_one_failure(server, manifest_file, tmp_path, capsys):
    for place, side in ((0, "train"), (4, "test")):
        accession, assembly = list(ASSEMBLIES.items())[place]
        good = server.files[path_of(accession, assembly)]
        serve(server, accession, assembly, gzip.compress(b">p\nMKLVEFPQI\n"))
        output = tmp_path / side
        assert run(manifest_file, "--output", output) == 1
        assert f"failed: {accession}: " in capsys.readouterr().out
        assert (output / "shards" / "valid.json").exists() and not (output / "corpus.lock.json").exists()
        serve(server, accession, assembly, good)
        server.files[path_of(accession, assembly)] = good


def test_the_name_of_the_assembly_may_be_given_or_wrong(server, tmp_path):
    accession, assembly = next(iter(ASSEMBLIES.items()))
    for given in (assembly, "another name"):
        manifest = Manifest.model_validate(
            {"name": "x", "base_url": f"{server.url}/all", "entries": [{"accession": accession, "assembly": given}]}
        )
        server.requests.clear()
        outcome = build(manifest, tmp_path / given, only_download=True)
        assert outcome.genomes[0].name == f"{accession}_{assembly}" and not outcome.failed
        assert any(request.path.endswith("/") for request in server.requests) == (given != assembly)


def test_an_old_version_names_the_new_one(server, tmp_path):
    manifest = Manifest.model_validate({"name": "x", "base_url": f"{server.url}/all", "entries": [{"accession": "GCF_000000100.7"}]})
    outcome = build(manifest, tmp_path / "out")
    assert "0 folders of that name" in outcome.failed[0].failure and "GCF_000000100.1_ASM0v1" in outcome.failed[0].failure


def test_addresses_and_servers_without_checksums(server, tmp_path):
    server.files["/mine/soil%20bug.fa.gz"] = fasta(9)
    server.files["/mine/plain"] = gzip.decompress(fasta(8))
    server.no_head = True
    entries = [
        {"url": f"{server.url}/mine/soil%20bug.fa.gz", "species": "a bug"},
        {"url": f"{server.url}/mine/plain", "name": "p1", "side": "test"},
    ]
    outcome = build(Manifest.model_validate({"name": "mine", "entries": entries}), tmp_path / "out")
    assert outcome.lock and [item["name"] for item in outcome.lock["entries"]] == ["soil_bug", "p1"]
    assert {item["checked_by"] for item in outcome.lock["entries"]} == {"none"}
    assert sorted(path.name for path in (tmp_path / "out" / "downloads").iterdir()) == ["p1.fa", "records", "soil_bug.fa.gz"]


def test_a_file_that_somebody_brought_is_checked_and_kept(server, manifest_file, tmp_path):
    folder = tmp_path / "out" / "downloads"
    folder.mkdir(parents=True)
    names = [f"{accession}_{assembly}.fna.gz" for accession, assembly in ASSEMBLIES.items()]
    for name, item in zip(names[:2], ASSEMBLIES.items(), strict=False):
        (folder / name).write_bytes(server.files[path_of(*item)] if name == names[0] else fasta(77))
    assert run(manifest_file, "--output", tmp_path / "out", "--only-download") == 1
    assert server.gets(path_of(*next(iter(ASSEMBLIES.items())))) == []
    (folder / names[1]).unlink()
    assert run(manifest_file, "--output", tmp_path / "out", "--only-download") == 0


def test_dry_run_writes_nothing(server, manifest_file, tmp_path, capsys):
    assert run(manifest_file, "--output", tmp_path / "out", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "valid" in out and "GCF_000000104.1_ASM4v1" in out and f"{len(fasta(4)):,}" in out and "md5checksums.txt" in out
    assert not (tmp_path / "out").exists()
    assert not any(request.path.endswith(".gz") and request.method == "GET" for request in server.requests)


def test_the_disk_is_looked_at_first(server, manifest_file, tmp_path, monkeypatch):
    total = sum(len(data) for path, data in server.files.items() if path.endswith(".gz"))
    free = {"free": total - 1}
    monkeypatch.setattr(corpora_build.shutil, "disk_usage", lambda _: type("Usage", (), free))
    manifest = load_manifest(manifest_file)
    for only in (True, False):
        with pytest.raises(DataError, match="are to be downloaded"):
            build(manifest, tmp_path / "out", only_download=only)
    assert not list(tmp_path.rglob("*.fna.gz"))
    free["free"] = total
    build(manifest, tmp_path / "out", only_download=True)
    with pytest.raises(DataError, match="shards take about"):
        build(manifest, tmp_path / "other")


def test_two_runs_do_not_write_to_one_folder(server, manifest_file, tmp_path):
    with corpora_build._only_run(tmp_path / "out", False), pytest.raises(DataError, match="another run is building"):
        build(load_manifest(manifest_file), tmp_path / "out")


def test_a_full_disk_ends_the_run(server, manifest_file, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "downloads").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        build(load_manifest(manifest_file), output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no corpus is named"),
        (["demo-viruses", "--max-rate", "0"], "--max-rate"),
        (["demo-viruses", "--retries", "-1"], "--retries"),
        (["demo-viruses", "--workers", "0"], "--workers"),
        (["demo-viruses", "--base-url", "ftp://x"], "--base-url"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, message):
    assert main(["corpus", *arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


# The lock


def test_the_lock_reproduces_the_corpus(server, manifest_file, tmp_path, capsys):
    assert run(manifest_file, "--output", tmp_path / "a") == 0
    lock = tmp_path / "a" / "corpus.lock.json"
    for path in [path for path in server.files if path.endswith("md5checksums.txt")]:
        del server.files[path]  # the lock has the checksums
    assert run("--locked", lock, "--output", tmp_path / "b") == 0
    for path in (tmp_path / "a" / "shards").rglob("*.b*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert run(manifest_file, "--locked", lock, "--output", tmp_path / "b") == 0
    assert run("--locked", tmp_path / "b" / "corpus.lock.json", "--output", tmp_path / "c") == 0
    server.requests.clear()
    assert run("--locked", lock, "--output", tmp_path / "a") == 0
    assert {request.method for request in server.requests} <= {"HEAD"}


def test_the_lock_works_on_a_mirror(server, manifest_file, tmp_path):
    assert run(manifest_file, "--output", tmp_path / "a") == 0
    server.files = {path.replace("/all/", "/mirror/ncbi/"): data for path, data in server.files.items()}
    lock = tmp_path / "a" / "corpus.lock.json"
    assert run("--locked", lock, "--output", tmp_path / "b", "--base-url", f"{server.url}/mirror/ncbi/") == 0


def test_any_difference_from_the_lock_is_an_error(server, manifest_file, tmp_path, capsys):
    assert run(manifest_file, "--output", tmp_path / "a") == 0
    lock = tmp_path / "a" / "corpus.lock.json"
    accession, assembly = next(iter(ASSEMBLIES.items()))
    good = server.files[path_of(accession, assembly)]
    serve(server, accession, assembly, fasta(55))  # NCBI has replaced the file, checksum and all
    assert run("--locked", lock, "--output", tmp_path / "b", "--retries", 1) == 1
    assert "expected" in capsys.readouterr().out and not (tmp_path / "b" / "corpus.lock.json").exists()
    serve(server, accession, assembly, good)
    tree = json.loads(lock.read_text())
    tree["shards"]["shards/test"]["files"]["bin"]["xxh3_128"] = "0" * 32
    (tmp_path / "other.json").write_text(json.dumps(tree))
    assert run("--locked", tmp_path / "other.json", "--output", tmp_path / "b") == 2
    assert "shards/test.bin: XXH3-128 is" in capsys.readouterr().err


def test_a_shard_changed_on_disk_is_seen(server, manifest_file, tmp_path, capsys):
    output = tmp_path / "a"
    assert run(manifest_file, "--output", output) == 0
    shard = output / "shards" / "valid.bin"
    shard.write_bytes(b"G" + shard.read_bytes()[1:] if shard.read_bytes()[:1] != b"G" else b"A" + shard.read_bytes()[1:])
    assert run("--locked", output / "corpus.lock.json", "--output", output) == 2
    assert "the file was changed" in capsys.readouterr().err


def test_a_lock_of_another_manifest_is_refused(server, manifest_file, tmp_path, capsys):
    assert run(manifest_file, "--output", tmp_path / "a", "--only-download") == 0
    lock = tmp_path / "a" / "corpus.lock.json"
    tree = yaml.safe_load(manifest_file.read_text())
    changes = [
        ({"split": {"test_last": 1}}, "is train in the manifest, valid in the lock"),
        ({"preprocess": {"min_length": 7}}, "preprocess is"),
    ]
    for change, message in changes:
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(tree | change))
        assert run(tmp_path / "other.yaml", "--locked", lock, "--output", tmp_path / "b") == 2
        assert message in capsys.readouterr().err
    assert run("--locked", manifest_file, "--output", tmp_path / "b") == 2
    assert "not JSON" in capsys.readouterr().err


def test_kill_anywhere_and_run_again(server, manifest_file, tmp_path):
    run(manifest_file, "--output", tmp_path / "whole")
    server.slow = 0.02
    for place, item in enumerate(ASSEMBLIES.items()):
        server.faults[path_of(*item)] = [Fault(drop_after=100 * place) for _ in range(2)]
    command = [sys.executable, "-m", "dnapretrain", "corpus", str(manifest_file), "--output", str(tmp_path / "out"), "--workers", "1"]
    for wait in (0.3, 0.45, 0.6, 0.8):
        child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 1800
        while not (tmp_path / "out" / ".running").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
    server.slow = 0
    assert run(manifest_file, "--output", tmp_path / "out", "--locked", tmp_path / "whole" / "corpus.lock.json") == 0
    assert not list((tmp_path / "out").rglob("*.part*")) and not list((tmp_path / "out").rglob("*dnapretrain-tmp*"))


def test_ctrl_c_keeps_what_is_there(server, manifest_file, tmp_path):
    data = fasta(1, 500_000)
    for item in ASSEMBLIES.items():
        serve(server, *item, data)
    server.slow = 3.0  # the first file takes longer than anything below
    command = [sys.executable, "-m", "dnapretrain", "corpus", str(manifest_file), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it, and so would the child
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, heard)
    while not list(tmp_path.rglob("*.part")):
        time.sleep(0.02)
        assert child.poll() is None
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=1800)
    assert child.returncode == 130 and err.endswith("stopped by the user\n") and "Traceback" not in err
    assert list(tmp_path.rglob("*.part"))
    server.slow = 0
    assert run(manifest_file, "--output", tmp_path / "out", "--only-download") == 0
    assert any(request.range for request in server.requests)


# The demonstration corpus, with the real genomes


@pytest.fixture
def real_server(server: FaultyServer) -> FaultyServer:
    folder = os.environ.get("DNAPRETRAIN_TEST_DATA")
    if not folder:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    for name, file in DEMO.items():
        accession, _, assembly = name[4:].partition("_")
        serve(server, f"GCF_{accession}", assembly, (Path(folder) / "genomes" / file).read_bytes())
    return server


def test_the_demonstration_corpus(real_server, tmp_path, capsys):
    manifest = load_manifest("demo-viruses")
    assert manifest.base_url == NCBI
    assert run("demo-viruses", "--output", tmp_path / "out", "--base-url", f"{real_server.url}/all") == 0
    assert "83,791 bases in 3 shards (published: 83,791)" in capsys.readouterr().out
    covid = open_shard(tmp_path / "out" / "shards" / "test")
    assert len(covid.bases) == 29_903 and covid.coordinates.contig == ["NC_045512.2"]
    shutil.rmtree(tmp_path / "out" / "shards")
    assert run("demo-viruses", "--output", tmp_path / "out", "--locked", tmp_path / "out" / "corpus.lock.json") == 0
