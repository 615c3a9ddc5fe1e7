"""The README.md of an exported folder against the run and the shards it describes."""

import json
import re

import pytest
import xxhash
import yaml
from families import run_config, sizes
from reference import write_random
from small_folders import FAMILIES, write_folder

from dnapretrain.config_file import config_from_dict
from dnapretrain.convert.hf import from_hf, to_hf
from dnapretrain.data.sampling.lengths import train_stream
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.tokens.tokenizers import build_tokenizer

STEP = 6


def fasta(path, seed, bases):
    """Bases, a run of 20 N in the middle, the second half in lower case."""
    letters = "".join("ACGT"[(i * i + seed * i) % 4] for i in range(bases))
    half = bases // 2
    path.write_text(f">chr{seed}\n{letters[:half]}{'N' * 20}{letters[half:].lower()}\n>held{seed}\n{letters[:300]}\n")


@pytest.fixture
def run(tmp_path):
    """A run folder with a log and a checkpoint at step 6 of 7, trained on two shards, one of a locked corpus; its config."""
    corpus = tmp_path / "corpus"
    (corpus / "shards" / "train").mkdir(parents=True)
    for name, seed in (("GCF_000005845.2_ASM584v2.fna", 1), ("other_yeast.fa", 2)):
        fasta(tmp_path / name, seed, 2000 + seed)
    inside, outside = corpus / "shards" / "train" / "coli", tmp_path / "shards" / "yeast"
    outside.parent.mkdir()
    preprocess([tmp_path / "GCF_000005845.2_ASM584v2.fna"], inside)
    preprocess([tmp_path / "other_yeast.fa"], outside)
    entries = [{"name": "GCF_000005845.2_ASM584v2", "accession": "GCF_000005845.2", "species": "Escherichia coli", "url": "https://x/y.gz"}]
    lock = {"name": "two-genomes", "entries": entries, "shards": {"shards/train/coli": {}}}
    (corpus / "corpus.lock.json").write_text(json.dumps(lock))
    config = config_from_dict(
        {
            "data": {
                "train": [{"prefix": str(inside), "weight": 3}, {"prefix": str(outside)}],
                "sequence_length": 64,
                "split": {"by": "contig", "valid_contigs": ["held1", "held2"]},
                "reverse_complement": 0.5,
            },
            "tokenizer": {"kind": "kmer", "k": 3},
            "model": sizes(2, 24, 4, 40),
            "optim": {"lr": 1e-3},
            "train": {"run_dir": str(tmp_path / "runs" / "small"), "train_steps": 7, "micro_batch_size": 1, "global_batch_size": 4},
        }
    )
    stream = train_stream(config.data_by_samples(), build_tokenizer(config.tokenizer))
    checkpoint = config.train.run_dir / "checkpoints" / f"step_{STEP:08d}"
    checkpoint.parent.mkdir(parents=True)
    state = {"step": STEP, "consumed_samples": 24, "consumed_tokens": 1536, "world_size": 2, "data_digest": stream.digest_at(24)}
    write_random(checkpoint, config, **state)
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    paths = {"device": "CPU (1 thread(s) per rank)", "megatron-core": "0.16.1", "torch": "2.13.0"}
    records = [{"kind": "start", "step": 0, "config": {"model": {"kind": "decoder"}}, "paths": paths, "data": stream.report()}]
    for step in range(1, 8):
        tokens = {"consumed_tokens": 256 * step, "consumed_bases": 768 * step}
        records.append({"kind": "train", "step": step, "bits_per_base": 2.0 - step / 100, "lr": 1e-3, **tokens})
        if step % 3 == 0 or step == 7:
            found = {"bits_per_base": 2.1 - step / 100, "marginal_bits_per_base": 1.99, "accuracy": 0.25, "num_targets": 600}
            records.append({"kind": "eval", "set": "valid", "step": step, **found})
    (config.train.run_dir / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return config


def export(config, tmp_path):
    to_hf(config.train.run_dir, tmp_path / "hf")
    return (tmp_path / "hf" / "README.md").read_text()


def row_with(card, text):
    [line] = [line for line in card.splitlines() if text in line and line.startswith("|")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_card_says_what_the_run_and_the_shards_say(run, tmp_path):
    card = export(run, tmp_path)
    assert "\n\n\n" not in card and "None" not in card and "{" not in card
    # The curve: rows at the evaluations up to the checkpoint, means of the steps since the row above; step 7 came later.
    curve = card.split("### Training curve")[1].split("##")[0]
    assert row_with(curve, "1,536 ") == ["6", "1,536", "4,608", f"{(1.96 + 1.95 + 1.94) / 3:.4f}", "1.00e-03", "2.0400"]
    assert row_with(curve, " 768 ")[3:] == [f"{(1.99 + 1.98 + 1.97) / 3:.4f}", "1.00e-03", "2.0700"]
    assert "1,792" not in card
    assert "| valid | 2.0400        | 1.9900   | 0.2500   |              600 |       6 |" in card
    assert row_with(card, "training bases seen")[1] == "at most 4,608 (tokens x 3, special tokens and single letters counted as others)"
    assert row_with(card, "layout")[1] == "2 rank(s): tensor 1 x pipeline 1 x data 2"
    positions = run.max_positions
    assert row_with(card, "context")[1] == f"{positions:,} tokens, 1 of them special, = {(positions - 1) * 3:,} bases"
    # The sources: the corpus entry of one, nothing but its manifest of the other.
    for prefix, first in ((run.data.train[0].prefix, "`coli`"), (run.data.train[1].prefix, "`yeast`")):
        manifest = json.loads(prefix.with_name(f"{prefix.name}.json").read_text())
        counts = manifest["counts"]
        file = "`GCF_000005845.2_ASM584v2.fna`" if first == "`coli`" else "`other_yeast.fa`"
        shard, name, _, accession, species, kept, total, digest = row_with(card, file)
        assert (shard, name, digest) == (first, file, f"`{manifest['sources'][0]['xxh3_128']}`")
        assert (kept, total) == (f"{counts['kept_bases']:,}", f"{counts['total_bases']:,}")
        assert (accession, species) == (("GCF_000005845.2", "Escherichia coli") if first == "`coli`" else ("-", "-"))
        assert f"n_run {counts['dropped_bases']['n_run']:,}" in card and counts["dropped_bases"]["n_run"] == 20
        assert manifest["files"]["bin"]["xxh3_128"] in card
        used = [line for line in card.splitlines() if line.startswith(f"| {first}") and " 300 |" in line]
        assert len(used) == 1  # the held-out contig
    assert "Split: by contig (valid_contigs held1, held2)." in card
    assert "Found equal to that of the shards" in card
    assert "6 of 7 planned" in card and "megatron-core 0.16.1" in card and "2 rank(s)" in card
    lock = run.data.train[0].prefix.parents[2] / "corpus.lock.json"
    data = json.loads((tmp_path / "hf" / "training_data.json").read_text())
    assert data["sources"][0]["corpus"] == {
        "name": "two-genomes",
        "lock": str(lock),
        "xxh3_128": xxhash.xxh3_128_hexdigest(lock.read_bytes()),
    }
    assert "corpus" not in data["sources"][1] and data["digest_check"] == "equal"
    assert "two-genomes" in card
    assert (tmp_path / "hf" / "loss.png").stat().st_size > 10_000
    assert (tmp_path / "hf" / "run.yaml").read_bytes() == (run.train.run_dir / "checkpoints" / "step_00000006" / "run.yaml").read_bytes()


def test_the_front_matter_is_what_the_hub_reads(run, tmp_path):
    card = export(run, tmp_path)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["license"], metadata["library_name"], metadata["pipeline_tag"]) == ("unknown", "transformers", "text-generation")
    assert {"dna", "genomics", "dnapretrain"} <= set(metadata["tags"])
    [result] = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "bits_per_base", "name": "bits per base", "value": 2.04}]
    assert card.split("---\n")[1].startswith("# Choose a license") and "To be filled in by who publishes" in card


def test_what_is_not_there_is_said_and_what_is_another_too(run, tmp_path):
    prefix = run.data.train[1].prefix
    manifest = prefix.with_name(f"{prefix.name}.json")
    manifest.unlink()
    card = export(run, tmp_path)
    assert re.search(r"`yeast`: \*\*no manifest\*\* \(.*yeast\.json: no such file\)", card)
    assert "It was not checked: " in card and "other_yeast" not in card
    fasta(tmp_path / "other_yeast.fa", 2, 2500)
    preprocess([tmp_path / "other_yeast.fa"], prefix, overwrite=True)
    assert "have another digest: what follows describes them, not the training data" in export(run, tmp_path)


def test_a_checkpoint_away_from_its_run_has_no_curve_and_no_picture(run, tmp_path):
    (run.train.run_dir / "checkpoints" / "step_00000006").rename(tmp_path / "elsewhere")
    to_hf(tmp_path / "elsewhere", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "Not recorded: no log.jsonl beside the checkpoint." in card and "Not evaluated on the way (no log.jsonl" in card
    assert row_with(card, "training bases seen")[1] == "not recorded"
    assert not (tmp_path / "hf" / "loss.png").exists() and "loss.png" not in card


def test_an_imported_checkpoint_says_where_it_is_from_and_invents_no_training(tmp_path):
    folder, _ = write_folder(tmp_path, "nt-v2")
    from_hf(folder, tmp_path / "imported")
    to_hf(tmp_path / "imported", tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text()
    assert "Imported from `hf` and not trained further" in card
    assert "## Training data" not in card and "to-be-set" not in card and "15 %" not in card and "strand" not in card
    assert not (tmp_path / "again" / "training_data.json").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_letters_in_the_limits_are_what_the_tokenizer_does(name, tmp_path):
    from transformers import AutoTokenizer

    folder, _ = write_folder(tmp_path, name)
    card = (folder / "README.md").read_text()
    text, read = re.search(r"Letters: `(\w+)` is read as (.*)\. Lower-case", card).groups()
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert theirs.convert_ids_to_tokens(ids) == re.findall(r"`([^`]+)`", read)
    assert 'LoraConfig(task_type="SEQ_CLS", target_modules=[' in card
    assert ("modules_to_save=['pooler']" in card) == (name == "dnabert2")


def test_a_config_of_stages_and_masks_is_told(tmp_path):
    from dnapretrain.convert.card_run import recipe_section, run_record

    tree = run_config({"kind": "nucleotide"}, sizes(2, 24, 4, 40)).model_dump(mode="json")
    tree["data"]["stages"] = [{"until_step": 3, "sequence_length": 32}, {"sequence_length": 64}]
    text = recipe_section(config_from_dict(tree), run_record(tmp_path, {}), {"step": 3})
    assert "windows, 32 then 64 tokens" in text and "hardware, software | not recorded" in text
