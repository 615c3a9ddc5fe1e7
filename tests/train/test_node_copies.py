"""Copies of checkpoints on each node's own disk: resumed from bit for bit, refused where they are not whole, never in the way.

Nodes are played by ranks with a folder each: checkpoint.local_dir names a variable that differs between them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import training
from ranks import HANG_SECONDS

from dnapretrain.convert.native import damaged_file, file_digest, read_state, state_text
from dnapretrain.errors import CheckpointError, ConfigError, DamagedCheckpointError
from dnapretrain.train import copying, node_copies
from dnapretrain.train.copying import copies_folder, copy_checkpoint
from dnapretrain.train.node_copies import View, nodes_with_copies

MIDDLE, STOP, END = 2, 4, 8
SETTING = {"local_dir": "$PLAYED_DISK"}


def on_nodes(env, store, tree, disks, until, save_at=()):
    """Train on ranks with a disk each, save at some steps and wait for the copies; (losses, lines, own copies, still to be saved)."""
    os.environ["PLAYED_DISK"] = disks[env.rank]
    trainer, _, printed = training.begin(env, store, tree)
    saver = trainer.saver
    losses = []
    with contextlib.redirect_stdout(io.StringIO()) as later:
        while trainer.position.step < until:
            losses.append(trainer.train_step(trainer.next_batches()).loss)
            if trainer.position.step in save_at:
                saver.save(trainer.position)
                while saver.copies and saver.copies._child is not None:
                    saver.copies.poll()
                    time.sleep(0.01)
        rewritten = saver._writing is not None
        saver._finish()
        if saver.copies:
            saver.copies.report(trainer.log)
            saver.stop()
        trainer.log.close()
    own = saver.copies.folder if saver.copies else Path()
    return losses, printed + later.getvalue(), sorted(path.name for path in own.iterdir()) if own.is_dir() else [], rewritten


def tree_of(shard, run_dir, **checkpoint):
    """Settings of a small run in bf16 whose optimizer state is spread over both nodes."""
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 48, "init_method_std": 0.08}
    return {
        "data": {"train": [{"prefix": str(shard)}], "split": {"by": "contig", "valid_contigs": ["chr3"]}, "sequence_length": 32},
        "tokenizer": {"kind": "nucleotide"},
        "model": {**sizes, "transformer_impl": "torch"},
        "parallel": {"use_distributed_optimizer": True},
        "optim": {"lr": 3e-3, "lr_warmup_steps": 2},
        "train": {
            "run_dir": str(run_dir),
            "train_steps": 40,
            "micro_batch_size": 2,
            "global_batch_size": 8,
            "precision": "bf16",
            "device": "cpu",
        },
        "checkpoint": checkpoint,
    }


def records(run, kind):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def made(ranks, small_shard, tmp_path_factory):
    """(folder of a run of two nodes that was stopped, with its disks; losses of the same run without a stop), made once."""
    folder = tmp_path_factory.mktemp("made")
    whole = ranks.run(2, on_nodes, tree=tree_of(small_shard, folder / "whole"), disks=["", ""], until=END)[0][0]
    disks = [str(folder / "disk0"), str(folder / "disk1")]
    tree = tree_of(small_shard, folder / "run", **SETTING)
    first = ranks.run(2, on_nodes, tree=tree, disks=disks, until=STOP, save_at=(MIDDLE, STOP))
    assert [names for _, _, names, _ in first] == [[f"step_{STOP:08d}"]] * 2  # checkpoint.keep_local = 1
    assert f"copied step_{MIDDLE:08d} on " in first[0][1]
    copied = records(folder / "run", "copy")
    assert [record["checkpoint"] for record in copied] == [f"step_{step:08d}" for step in (MIDDLE, MIDDLE, STOP, STOP)]
    assert all(record["bytes"] > 50_000 for record in copied)
    return folder, whole[STOP:]


@pytest.fixture
def stopped(made, small_shard, tmp_path):
    """(settings, disks, losses to come, the nodes' copies, the checkpoint) of a stopped run to do damage to."""
    folder, losses = made
    for name in ("run", "disk0", "disk1"):
        shutil.copytree(folder / name, tmp_path / name)
    disks = [str(tmp_path / "disk0"), str(tmp_path / "disk1")]
    own = [copies_folder(Path(disk), tmp_path / "run") for disk in disks]
    for place in own:
        next(place.parent.iterdir()).rename(place)  # where a run of this folder looks
    name = f"step_{STOP:08d}"
    tree = tree_of(small_shard, tmp_path / "run", **SETTING)
    return tree, disks, losses, [place / name for place in own], tmp_path / "run" / "checkpoints" / name


def sources(run):
    return [node["source"] for node in records(run, "checkpoint_read")[-1]["nodes"]]


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_resume_from_copies_is_bitwise(ranks, stopped, tmp_path):
    tree, disks, losses, copies, shared = stopped
    files = sorted(path.relative_to(shared) for path in shared.rglob("*") if path.is_file())
    for copy in copies:
        assert sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file()) == files
        assert all((copy / name).read_bytes() == (shared / name).read_bytes() for name in files)
    hidden = shared.with_name("elsewhere")
    (shared / "weights").rename(hidden)  # nothing of it can be read by mistake
    (shared / "weights").mkdir()
    for file in hidden.iterdir():
        (shared / "weights" / file.name).write_bytes(b"\0" * file.stat().st_size)
    results = ranks.run(2, on_nodes, tree=tree, disks=disks, until=END)
    assert [result[0] for result in results] == [losses] * 2
    assert sources(tmp_path / "run") == ["copy", "copy"] and "from their own copies in" in results[0][1]


@pytest.mark.parametrize("fault", ["missing", "bytes", "short", "state", "other"])
def test_a_copy_that_is_not_whole_is_refused(ranks, stopped, tmp_path, fault):
    tree, disks, losses, copies, _ = stopped
    weights = next((copies[1] / "weights").glob("__0_0.distcp"))
    if fault == "missing":
        shutil.rmtree(copies[1])
    elif fault == "bytes":
        flip(weights)
    elif fault == "short":
        truncate(weights)
    elif fault == "state":
        flip(copies[1] / "state.json")
    else:  # whole, of the same step, and of another life of the run
        state = json.loads((copies[1] / "state.json").read_text())
        (copies[1] / "state.json").write_text(state_text(copies[1], {**state, "consumed_tokens": 1}))
    results = ranks.run(2, on_nodes, tree=tree, disks=disks, until=END)
    assert [result[0] for result in results] == [losses] * 2
    assert sources(tmp_path / "run") == ["copy", "run folder"]
    remarks = records(tmp_path / "run", "start")[-1]["remarks"]
    if fault == "missing":
        assert remarks == []
    else:
        says = "copy of another checkpoint" if fault == "other" else "is damaged"
        assert len(remarks) == 1 and says in remarks[0] and str(copies[1]) in remarks[0] and remarks[0] in results[0][1]


@pytest.mark.parametrize("fault", ["short", "state", "gone"])
def test_copies_save_a_run_whose_newest_checkpoint_is_damaged(ranks, stopped, tmp_path, fault):
    tree, disks, losses, _, shared = stopped
    if fault == "short":
        truncate(next((shared / "weights").glob("__0_0.distcp")))
    elif fault == "state":
        flip(shared / "state.json")
    else:
        shutil.rmtree(shared)
    results = ranks.run(2, on_nodes, tree=tree, disks=disks, until=END)
    assert [result[0] for result in results] == [losses] * 2
    assert "Every node has a copy" in results[0][1] and results[0][3]
    assert damaged_file(shared, read_state(shared)) == ""  # saved again
    assert records(tmp_path / "run", "start")[-1]["step"] == STOP


def test_without_a_copy_on_every_node_a_damaged_checkpoint_is_passed_over(ranks, stopped, tmp_path):
    tree, disks, _, copies, shared = stopped
    flip(next((shared / "weights").glob("__0_0.distcp")))
    shutil.rmtree(copies[1])
    results = ranks.run(2, on_nodes, tree=tree, disks=disks, until=END)
    assert len(results[0][0]) == END - MIDDLE  # from the checkpoint before it
    assert "The one before it is tried" in results[0][1] and sources(tmp_path / "run") == ["run folder"] * 2


def test_settings_that_cannot_be(ranks, tiny_config, tmp_path):
    tree = tiny_config("run")
    tree["checkpoint"] = dict(SETTING)
    (tmp_path / "other").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(ConfigError, match=r"is one folder .* for .* and "):
        ranks.run(2, on_nodes, tree=tree, disks=[str(tmp_path / "disk"), str(tmp_path / "other")], until=1)
    assert not list((tmp_path / "disk").rglob(".node-*"))
    with pytest.raises(ConfigError, match="is relative"):
        ranks.run(2, on_nodes, tree=tree, disks=[str(tmp_path / "disk"), "here"], until=1)
    tree["checkpoint"]["local_dir"] = "${NO_SUCH_DISK}/copies"
    with pytest.raises(ConfigError, match=r"names \$\{NO_SUCH_DISK\}, which is not set on "):
        ranks.run(2, on_nodes, tree=tree, disks=["", ""], until=1)


def test_a_node_without_a_usable_disk_goes_without(ranks, tiny_config, tmp_path):
    tree = tiny_config("run")
    tree["checkpoint"] = dict(SETTING)
    (tmp_path / "file").touch()
    results = ranks.run(2, on_nodes, tree=tree, disks=[str(tmp_path / "disk"), str(tmp_path / "file")], until=2, save_at=(2,))
    assert [names for _, _, names, _ in results] == [["step_00000002"], []]
    assert "goes without copies of checkpoints: [Errno 20] Not a directory" in results[0][1]


def fit(env, store, tree, disk):
    os.environ["PLAYED_DISK"] = disk
    trainer, _, printed = training.begin(env, store, tree)
    with contextlib.redirect_stdout(io.StringIO()) as later:
        trainer.fit()
        trainer.saver.stop()
        trainer.log.close()
    return printed + later.getvalue()


def test_a_stopped_run_leaves_its_copy_and_a_finished_one_none(ranks, tiny_config, tmp_path):
    tree = tiny_config("run", **{"train.train_steps": 6, "train.stop_at_step": 4})
    tree["checkpoint"] = {**SETTING, "save_interval": 2}
    ranks.run(1, fit, tree=tree, disk=str(tmp_path / "disk"))
    assert [path.name for path in (tmp_path / "disk").glob("run-*/*")] == ["step_00000004"]
    tree["train"]["stop_at_step"] = None
    printed = ranks.run(1, fit, tree=tree, disk=str(tmp_path / "disk"))[0]
    assert "from their own copies" in printed
    assert list((tmp_path / "disk").iterdir()) == []


# The copying itself


@pytest.fixture
def checkpoint(tmp_path):
    """A folder that is a checkpoint as far as copying goes: 3 MB."""
    folder = tmp_path / "run" / "checkpoints" / "step_00000010"
    (folder / "weights").mkdir(parents=True)
    files = {}
    for number in range(3):
        path = folder / "weights" / f"__{number}_0.distcp"
        path.write_bytes(os.urandom(1_000_000))
        files[path.name] = file_digest(path)
    (folder / "run.yaml").write_text("a: 1\n")
    (folder / "tokenizer.json").write_text("{}")
    state = {"format": 1, "step": 10, "consumed_samples": 80, "files": files}
    (folder / "state.json").write_text(state_text(folder, state))
    return folder


@pytest.fixture
def not_nicer(monkeypatch):
    monkeypatch.setattr(copying.os, "nice", lambda _: 0)  # this process goes on


def test_old_copies_go_and_stale_ones_are_replaced(checkpoint, tmp_path, not_nicer):
    disk = tmp_path / "disk"
    for name in ("step_00000008", "step_00000009", "step_00000012", ".step_00000007.partial", ".step_00000006.deleting"):
        (disk / name).mkdir(parents=True)
    (disk / "step_00000010").mkdir()
    (disk / "step_00000010" / "state.json").write_text("{}")
    told = copy_checkpoint(checkpoint, disk, keep=2)
    assert told["bytes"] == sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert sorted(path.name for path in disk.iterdir()) == ["step_00000009", "step_00000010"]
    assert (disk / "step_00000010" / "state.json").read_bytes() == (checkpoint / "state.json").read_bytes()
    made = (disk / "step_00000010" / "weights" / "__0_0.distcp").stat().st_mtime_ns
    copy_checkpoint(checkpoint, disk, keep=1)
    assert (disk / "step_00000010" / "weights" / "__0_0.distcp").stat().st_mtime_ns == made  # there already
    assert [path.name for path in disk.iterdir()] == ["step_00000010"]


def test_a_damaged_checkpoint_is_not_copied(checkpoint, tmp_path, not_nicer):
    (tmp_path / "disk").mkdir()
    flip(checkpoint / "weights" / "__1_0.distcp")
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp is not as it was written"):
        copy_checkpoint(checkpoint, tmp_path / "disk", keep=1)
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_full_disk(checkpoint, tmp_path, not_nicer, monkeypatch):
    disk, free = tmp_path / "disk", [2_000_000]
    (disk / "step_00000008").mkdir(parents=True)
    deleted = []
    delete = copying._delete

    def makes_room(copy):
        deleted.append(copy.name)
        delete(copy)
        free[0] = 4_000_000

    monkeypatch.setattr(copying, "_delete", makes_room)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10_000_000, 0, free[0]))
    copy_checkpoint(checkpoint, disk, keep=2)
    assert deleted == ["step_00000008"] and [path.name for path in disk.iterdir()] == ["step_00000010"]
    shutil.rmtree(disk / "step_00000010")
    free[0] = 2_000_000
    with pytest.raises(OSError, match=r"it takes 0\.003 GB, 0\.002 GB are free"):
        copy_checkpoint(checkpoint, disk, keep=2)
    free[0] = 4_000_000

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copying.os, "fsync", full)  # it fills up on the way
    with pytest.raises(OSError, match="No space left"):
        copy_checkpoint(checkpoint, disk, keep=2)
    assert list(disk.iterdir()) == []


def test_killed_in_the_middle_leaves_nothing_that_is_believed(checkpoint, tmp_path, not_nicer):
    disk = tmp_path / "disk"
    disk.mkdir()
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom dnapretrain.train import copying\n"
        "fsync, done = copying.os.fsync, []\n"
        "def slow(descriptor):\n    fsync(descriptor); done.append(1)\n"
        "    if len(done) == 2: print('middle', flush=True); time.sleep(3600)\n"
        "copying.os.fsync = slow\ncopying.copy_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), 1)\n"
    )
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", program, checkpoint, disk], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "middle\n"
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in disk.iterdir()] == [".step_00000010.partial"]
    copy_checkpoint(checkpoint, disk, keep=1)
    assert [path.name for path in disk.iterdir()] == ["step_00000010"]


def test_a_copy_that_hangs_is_ended_and_said(ranks, tiny_config, tmp_path):
    tree = tiny_config("run")
    tree["checkpoint"] = dict(SETTING)
    reports, left = ranks.run(1, hanging, tree=tree, disk=str(tmp_path / "disk"))[0]
    assert reports[0]["problem"].startswith("it took longer than checkpoint.timeout_seconds") and left == []


def hanging(env, store, tree, disk):
    os.environ["PLAYED_DISK"] = disk

    def hangs(checkpoint, folder, keep):
        (folder / f".{checkpoint.name}.partial").mkdir()
        time.sleep(3600)

    copy, node_copies.copy_checkpoint = node_copies.copy_checkpoint, hangs
    try:
        trainer, _, _ = training.begin(env, store, tree)
        copies = trainer.saver.copies
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train_step(trainer.next_batches())
            trainer.saver.save(trainer.position)
        until = time.monotonic() + HANG_SECONDS
        while not list(copies.folder.iterdir()) and time.monotonic() < until:
            copies.poll()
            time.sleep(0.01)
        copies._began -= tree["checkpoint"].get("timeout_seconds", 1800.0)
        copies.poll()
        trainer.log.close()
        return copies._reports, sorted(path.name for path in copies.folder.iterdir())
    finally:
        node_copies.copy_checkpoint = copy


def test_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAYED_DISK", "/scratch")
    folder = copies_folder(Path("$PLAYED_DISK/x"), tmp_path / "run")
    assert folder.parent == Path("/scratch/x") and folder.name.startswith("run-")
    assert folder == copies_folder(Path("${PLAYED_DISK}/x"), tmp_path / "a" / ".." / "run")
    assert folder != copies_folder(Path("$PLAYED_DISK/x"), tmp_path / "other" / "run")


@pytest.mark.parametrize(
    ("views", "having"),
    [
        ([View("a", "1", "", ""), View("b", "1", "", "")], {"a", "b"}),
        ([View("a", "1", "", ""), View("b", "", "", "")], {"a"}),
        ([View("a", "1", "", ""), View("a", "", "damaged", ""), View("b", "1", "", "")], {"b"}),  # one rank has seen damage
        ([View("a", "1", "", "gone"), View("b", "1", "", "gone")], {"a", "b"}),
        ([View("a", "1", "", "gone"), View("b", "2", "", "gone")], None),  # of two lives: neither is believed
        ([View("a", "1", "", "gone"), View("b", "", "", "gone")], None),
    ],
)
def test_who_reads_a_copy(views, having):
    if having is None:
        with pytest.raises(DamagedCheckpointError, match="gone"):
            nodes_with_copies(views)
    else:
        assert nodes_with_copies(views) == having
