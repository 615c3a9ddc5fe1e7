"""Bad input through the real command line: one line on stderr that says what and what to do, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import xxhash
import yaml
from ranks import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = "run/checkpoints/step_00000002"
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES},
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",  # spinning threads of a busy machine make small models a hundred times slower
}
CONFIG = {
    "data": {"train": "shard", "sequence_length": 32, "split": {"by": "contig", "valid_contigs": ["c2"]}},
    "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 64},
    "optim": {"lr": 1e-3},
    "train": {"run_dir": "run", "train_steps": 2, "micro_batch_size": 2, "global_batch_size": 4, "precision": "fp32", "device": "cpu"},
}


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`dnapretrain ARGUMENTS` in `folder`."""
    command = [sys.executable, "-m", "dnapretrain", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG_SECONDS)


WARM_UP = """
import json, os, sys, traceback
import dnapretrain.adapt.generation.generate, dnapretrain.convert.hf, dnapretrain.train.run
from dnapretrain.cli import main
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
print("ready", flush=True)
for line in sys.stdin:
    folder, arguments, out, err = json.loads(line)
    if not (child := os.fork()):
        os.chdir(folder)
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        code = 1
        try:
            code = main(arguments)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking down torch and transformers would take a second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def run_warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """As `run`, in children of one process that has imported torch, Megatron and transformers: each saves seconds."""
    command = [sys.executable, "-W", "ignore", "-c", WARM_UP]
    pipes = tmp_path_factory.mktemp("pipes")

    def ask(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        out, err = pipes / "out", pipes / "err"
        out.write_text("")
        err.write_text("")
        process.stdin.write(json.dumps([str(folder), arguments, str(out), str(err)]) + "\n")
        process.stdin.flush()
        return subprocess.CompletedProcess(arguments, int(process.stdout.readline()), out.read_text(), err.read_text())

    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield ask
        process.stdin.close()


def contents(folder: Path) -> dict[str, str]:
    """Every path below `folder` and what it holds."""
    return {
        str(path.relative_to(folder)): xxhash.xxh3_128_hexdigest(path.read_bytes()) if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def check_refused(folder: Path, arguments: str, *says: str, run: Run = run) -> None:
    """The command fails with one line that holds `says`, prints no result and changes nothing."""
    before = contents(folder)
    result = run(folder, *arguments.split())
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    for part in says:
        assert part in result.stderr
    assert result.stdout == ""
    assert contents(folder) == before


# Preprocess and inspect


def write_fasta(folder: Path) -> None:
    rng = np.random.default_rng(3)
    bases = ["".join(rng.choice(list("ACGT"), length)) for length in (3000, 500)]
    (folder / "good.fa").write_text(f">c1\n{bases[0]}\n>c2\n{bases[1]}\n")


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """A folder with good and bad inputs."""
    write_fasta(tmp_path)
    (tmp_path / "protein.fa").write_text(">p1 a protein\nMKVLAAGGEEFPLIVQQ\n")
    (tmp_path / "empty.fa").write_text("")
    (tmp_path / "text.fa").write_text("dear reader\n")
    (tmp_path / "bare.fa").write_text(">a\n>b\n")
    (tmp_path / "twice.fa").write_text(">a\nACGT\n>b\nAC\n>a x\nGT\n")
    rng = np.random.default_rng(4)
    lines = "".join(f"{''.join(rng.choice(list('ACGT'), 60))}\n" for _ in range(4000))
    packed = gzip.compress(f">long\n{lines}".encode())
    (tmp_path / "cut.fa.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "other.fa.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    (tmp_path / "none").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("protein.fa --output new", ["protein.fa: line 2, record 'p1': 'L' is an amino acid", "Give nucleotide FASTA"]),
        ("empty.fa --output new", ["empty.fa: line 1: the file is empty", "Give FASTA"]),
        ("text.fa --output new", ["text.fa: line 1: 'd' before the first '>'"]),
        ("bare.fa --output new", ["bare.fa: line 3, record 'b': no bases in the whole file"]),
        ("twice.fa --output new", ["twice.fa: line 5, record 'a': this name was used at line 1 already", "Rename"]),
        ("cut.fa.gz --output new", ["cut.fa.gz: ", "the gzip file is truncated", "Fetch or pack it again"]),
        ("other.fa.zst --output new", ["other.fa.zst: line 1: the Zstandard file is truncated here", "Fetch or pack it again"]),
        ("missing.fa --output new", ["missing.fa: no such file or folder", "Give FASTA, FASTQ, 2bit"]),
        ("none --output new", ["none: no FASTA files", "Give the files themselves"]),
        ("good.fa good.fa --output new", ["good.fa: assembly 'good' is the name of good.fa already", "Rename"]),
        ("good.fa --output new --workers 0", ["--workers = 0 is below 1"]),
        ("good.fa --output new --min-length 5000", ["of 3500 bases", "3500 in documents that are too short", "Lower --min-length"]),
        ("good.fa --output none", ["none: a folder, not a prefix", "--output none/shard"]),
        ("good.fa --output text.fa/new", ["text.fa/new: cannot be written", "choose another --output"]),
    ],
)
def test_preprocess_refuses(fasta: Path, arguments: str, says: list[str]) -> None:
    check_refused(fasta, f"preprocess {arguments}", *says)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_preprocess_refuses_one_input_and_keeps_the_others(fasta: Path, workers: str) -> None:
    before = contents(fasta)
    result = run(fasta, "preprocess", "good.fa", "protein.fa", "--output", "new", "--workers", workers)
    assert (result.returncode, result.stdout) == (2, "")
    note, error = result.stderr.splitlines()
    assert note == "dnapretrain: finished inputs are kept in .new.dnapretrain-tmp: the same command goes on from there"
    assert error.startswith("error: protein.fa: line 2, record 'p1'")
    assert {name: what for name, what in contents(fasta).items() if "dnapretrain-tmp" not in name} == before


def test_preprocess_does_not_replace_a_shard_unasked(fasta: Path) -> None:
    assert run(fasta, "preprocess", "good.fa", "--output", "new").returncode == 0
    check_refused(fasta, "preprocess good.fa --output new", "new.bin exists already", "--overwrite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_preprocess_refuses_a_folder_it_may_not_write(fasta: Path) -> None:
    (fasta / "none").chmod(0o500)
    check_refused(fasta, "preprocess good.fa --output none/new", "none/new: cannot be written: Permission denied")


def damage_shard(folder: Path, kind: str) -> None:
    path = folder / f"shard.{kind}"
    if kind == "json":
        path.write_text("{")
    else:
        os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("bin", ["shard.bin: 3499 bytes, but the manifest says 3500", "Copy the shard again"]),
        ("idx", ["shard.idx: ", "Copy the shard again"]),
        ("bed", ["shard.bed: ", "Copy the shard again"]),
        ("json", ["shard.json: not JSON", "Run dnapretrain preprocess again"]),
    ],
)
def test_a_damaged_shard_is_refused(trained: Path, kind: str, says: list[str]) -> None:
    damage_shard(trained, kind)
    check_refused(trained, "inspect shard", *says)
    check_refused(trained, "pretrain config.yaml train.run_dir=other", *says)


def test_a_missing_shard_is_refused(trained: Path) -> None:
    check_refused(trained, "inspect nowhere", "nowhere: no such shard (nowhere.json is missing)", "Give the prefix")
    check_refused(trained, "pretrain config.yaml data.train=nowhere", "nowhere: no such shard (nowhere.json is missing)")
    (trained / "shard.json").unlink()
    check_refused(trained, "inspect shard", "shard: no manifest shard.json, so the shard is not finished")
    (trained / "shard.bin").unlink()
    check_refused(trained, "evaluate run", "shard: no such shard")


# Settings


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("nowhere.yaml", ["config file not found: nowhere.yaml", "Give a YAML file, or one of"]),
        ("good.fa", ["cannot read config file good.fa"]),
        ("config.yaml optim.learning=1", ["unknown config key 'optim.learning'"]),
        ("config.yaml model.hiden_size=1", ["unknown config key 'model.hiden_size'. Did you mean 'model.hidden_size'?"]),
        ("config.yaml optim.lr=fast", ["optim.lr: ", "(got 'fast')"]),
        ("config.yaml parallel.tp=3", ["model.num_attention_heads = 4 is not divisible by parallel.tensor_model_parallel_size = 3"]),
        ("config.yaml parallel.pp=2 --ranks 3", ["3 rank(s) cannot hold", "Start a multiple of 2 ranks"]),
        ("config.yaml --ranks 4", ["train.global_batch_size = 4", "2 x 4 = 8", "Change one of them"]),
        ("config.yaml --ranks 0", ["--ranks = 0 is below 1"]),
        ("config.yaml data.split.valid_contigs=[c9]", ["contig 'c9', which is in no training shard", "c1, c2"]),
        ("config.yaml data.min_length=9999", ["shard shard gives no sample for 'train'", "Lower data.min_length"]),
        ("config.yaml data.valid={valid: shard}", ["override 'data.valid={valid:'"]),
        ("config.yaml --rank 2", ["unrecognized arguments: --rank"]),
    ],
)
def test_pretrain_refuses(trained: Path, arguments: str, says: list[str]) -> None:
    check_refused(trained, f"pretrain {arguments}", *says)


# Checkpoints


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard, a finished run of two steps and its export."""
    folder = tmp_path_factory.mktemp("finished")
    write_fasta(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    for arguments in ("preprocess good.fa --output shard", "pretrain config.yaml", "convert to-hf run hf"):
        result = run(folder, *arguments.split())
        assert (result.returncode, result.stderr) == (0, ""), f"{arguments}: a good run prints nothing on stderr"
    return folder


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` to damage."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def largest(folder: Path) -> Path:
    return max((folder / CHECKPOINT / "weights").iterdir(), key=lambda path: path.stat().st_size)


def lose_file(folder: Path) -> str:
    path = largest(folder)
    path.unlink()
    return f"{CHECKPOINT}/weights/{path.name} is missing"


def cut_file(folder: Path) -> str:
    path = largest(folder)
    os.truncate(path, path.stat().st_size // 2)
    return f"{CHECKPOINT}/weights/{path.name}"


def flip_byte(folder: Path) -> str:
    path = largest(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"{CHECKPOINT}/weights/{path.name}"


def empty_state(folder: Path) -> str:
    (folder / CHECKPOINT / "state.json").write_text("{}")
    return f"{CHECKPOINT}/state.json"


RESUME = "pretrain config.yaml train.train_steps=3"


@pytest.mark.parametrize(
    ("damage", "arguments"),
    [
        (lose_file, "evaluate run"),
        (flip_byte, f"evaluate {CHECKPOINT}"),
        (cut_file, RESUME),
        (flip_byte, RESUME),
        (empty_state, RESUME),
        (lose_file, "convert to-hf run new"),
        (cut_file, "convert to-hf run new"),
        (flip_byte, f"convert to-hf {CHECKPOINT} new"),
        (empty_state, "convert to-hf run new"),
    ],
)
def test_a_damaged_checkpoint_is_refused(trained: Path, run_warm: Run, damage: Callable[[Path], str], arguments: str) -> None:
    names = damage(trained)
    check_refused(trained, arguments, names, "Use ", run=run_warm)


def test_damage_that_one_of_two_ranks_finds_is_told_once(trained: Path) -> None:
    names = flip_byte(trained)
    check_refused(trained, f"{RESUME} --ranks 2", names, "Use ")


def test_a_checkpoint_of_another_model_is_not_resumed(trained: Path, run_warm: Run) -> None:
    check_refused(
        trained, f"{RESUME} model.ffn_hidden_size=96", "has model.ffn_hidden_size=64, the run has 96", "another train.run_dir", run=run_warm
    )


@pytest.mark.parametrize("verb", ["evaluate nowhere", "convert to-hf nowhere new"])
def test_a_missing_checkpoint_is_refused(trained: Path, run_warm: Run, verb: str) -> None:
    check_refused(trained, verb, "no such folder: nowhere", "Give a run folder or a checkpoint folder", run=run_warm)


def test_a_latest_file_that_names_nothing_is_refused(trained: Path, run_warm: Run) -> None:
    (trained / "run/checkpoints/latest").write_text("step_00000009\n")
    check_refused(trained, "convert to-hf run new", "run/checkpoints/latest names step_00000009, which is not there", run=run_warm)


# Where results go


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("convert to-hf run good.fa", ["good.fa exists and is not an earlier export", "Give another folder"]),
        ("convert to-hf run good.fa/new", ["good.fa", "Not a directory"]),
        ("convert from-hf hf run", ["run exists already", "Remove it or write elsewhere"]),
        ("pretrain config.yaml train.run_dir=good.fa/run", ["train.run_dir = good.fa/run"]),
        ("report run --output good.fa/loss.png", ["good.fa"]),
        ("generate hf --num-bases 4 --output nowhere/new.fa", ["nowhere/new.fa: No such file or directory", "Check the path"]),
    ],
)
def test_a_target_that_cannot_be_written_is_refused(trained: Path, run_warm: Run, arguments: str, says: list[str]) -> None:
    check_refused(trained, arguments, *says, run=run_warm)


# Hugging Face folders


def other_family(folder: Path) -> None:
    content = json.loads((folder / "hf/config.json").read_text())
    (folder / "hf/config.json").write_text(json.dumps({**content, "model_type": "mamba"}))


def no_weights(folder: Path) -> None:
    (folder / "hf/model.safetensors").unlink()


def other_vocabulary(folder: Path) -> None:
    content = json.loads((folder / "hf/config.json").read_text())
    (folder / "hf/config.json").write_text(json.dumps({**content, "vocab_size": 77}))


@pytest.mark.parametrize(
    ("damage", "arguments", "says"),
    [
        (lambda folder: None, "convert from-hf run new", ["run/config.json is missing: not a Hugging Face model folder"]),
        (other_family, "convert from-hf hf new", ["config.json: model_type = 'mamba'", "llama (GENERator)"]),
        (other_vocabulary, "convert from-hf hf new", ["hf: vocab_size = 77"]),
        (no_weights, "convert from-hf hf new", ["hf", "safetensors"]),
        (lambda folder: None, "generate good.fa --num-bases 4", ["good.fa is no model: no Hugging Face folder", "no run"]),
        (no_weights, "generate hf --num-bases 4", ["hf"]),
        (lambda folder: None, "generate hf --num-bases 4 --prompt ACXG", ["prompt1 has 'X' at position 3", "Remove or replace"]),
        (lambda folder: None, "generate hf --num-bases 99 --prompt ACGT", ["context of 32 tokens", "room for 27 new bases"]),
    ],
)
def test_a_wrong_model_folder_or_prompt_is_refused(
    trained: Path, run_warm: Run, damage: Callable[[Path], None], arguments: str, says: list[str]
) -> None:
    damage(trained)
    check_refused(trained, arguments, *says, run=run_warm)


# Ctrl-C


def test_an_interrupt_ends_all_ranks(trained: Path) -> None:
    """Two ranks train for ever; Ctrl-C (which a terminal sends to all processes of the command) ends them quickly, with a checkpoint."""
    settings = ["train.run_dir=endless", "train.train_steps=1000000", "--ranks", "2"]
    command = [sys.executable, "-m", "dnapretrain", "pretrain", "config.yaml", *settings]
    process = subprocess.Popen(
        command, cwd=trained, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert any(line.startswith("step ") for line in process.stdout), "no step was made"
        ranks = psutil.Process(process.pid).children(recursive=True)
        assert len(ranks) >= 2
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 75
        assert "by SIGINT; the same command goes on from there" in printed.splitlines()[-1]
        assert errors == ""
        (checkpoint,) = (trained / "endless" / "checkpoints").glob("step_*")
        assert f"stopped after step {int(checkpoint.name[5:])} " in printed
        assert [rank for rank in ranks if rank.is_running()] == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_killed_rank_is_told_in_one_line_and_the_run_folder_serves_one_run(trained: Path) -> None:
    command = [sys.executable, "-m", "dnapretrain", "pretrain", "config.yaml", "train.run_dir=endless", "train.train_steps=1000000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--ranks", "2"], cwd=trained, env=ENVIRONMENT, start_new_session=True, **pipes)
    try:
        assert any(line.startswith("step ") for line in process.stdout), "no step was made"
        second = run(trained, *command[3:])
        assert second.returncode == 2 and "train.run_dir = endless is in use by process" in second.stderr and second.stderr.count("\n") == 1
        _, victim = sorted(rank.pid for rank in psutil.Process(process.pid).children())
        os.kill(victim, signal.SIGKILL)
        _, errors = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 137
        assert errors == "error: rank 1 was killed by SIGKILL. If memory ran out, lower train.micro_batch_size or the number of ranks.\n"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
