"""Runs on a real Slurm: the time limit, lost ranks and nodes, scancel; the curve is always that of a run without a stop."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from slurm_support import STEPS, Cluster, write_script

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(5400)]


def finished_as_whole(cluster: Cluster, run: str, whole: dict[int, set[float]]) -> None:
    assert cluster.losses(run) == whole
    assert (cluster.folder / run / "checkpoints" / f"step_{STEPS:08d}").is_dir()


def wait_for_step(cluster: Cluster, run: str, step: int) -> None:
    cluster.wait_for(f"{run} is at step {step}", lambda: max(cluster.losses(run), default=0) >= step)


def test_the_time_limit_saves_requeues_and_finishes(cluster, whole):
    """Slurm signals the script 70 s before the limit of 2 minutes (it looks every 30 s, and up to 30 s early)."""
    write_script(cluster.folder, "limit", "--time", "2", "--margin", "70")
    cluster.pause(1)
    started = time.monotonic()
    job = cluster.submit("limit.sbatch", "train.run_dir=limit", CHECK="0")
    cluster.wait_for("the job is requeued", lambda: cluster.job(job)["JobState"] == "PENDING" and cluster.job(job)["Restarts"] == "1")
    assert time.monotonic() - started > 10
    cluster.pause(0)
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=20")  # on a busy machine the start alone takes a minute
    cluster.start_again_now(job, 1)
    end = cluster.wait_for_state(job, "COMPLETED")
    assert end["Restarts"] == "1" and end["ExitCode"] == "0:0"
    (stop,) = cluster.events("limit", "stop")
    assert stop["reason"] == "SIGUSR2" and 0 <= stop["step"] < STEPS
    assert [event["step"] for event in cluster.events("limit", "start")] == [0, stop["step"]]
    text = (cluster.folder / f"tiny-{job}.out").read_text()
    assert text.index("asked to stop") < text.index("stopped with a checkpoint") < text.index("requeue") < text.index("finished")
    assert {path.name for path in (cluster.folder / "logs" / f"tiny-{job}").glob("*.log")} == {f"{rank}.log" for rank in range(4)}
    finished_as_whole(cluster, "limit", whole)


def test_a_killed_rank_starts_again_and_scancel_saves(cluster, whole):
    run = "hurt"
    cluster.pause(0.3)
    first = cluster.submit("tiny.sbatch", f"train.run_dir={run}", CHECK="0")
    wait_for_step(cluster, run, 11)
    cluster.kill_rank(first, 3)  # the others must not wait for it; the job starts again from the checkpoint
    cluster.start_again_now(first, 1)
    text = (cluster.folder / f"tiny-{first}.out").read_text()
    assert "failed: 137 rank 3 on node2" in text
    at_kill = max(cluster.losses(run))
    wait_for_step(cluster, run, at_kill + 2)
    assert cluster.events(run, "start")[-1]["step"] in range(10, at_kill + 1, 10)

    cluster.call("scancel", first)
    cluster.wait_for_state(first, "CANCELLED")
    output = cluster.folder / f"tiny-{first}.out"
    cluster.wait_for("the ranks have saved and the script has seen it", lambda: "no new start" in output.read_text())
    (stop,) = cluster.events(run, "stop")
    assert stop["reason"] == "SIGTERM" and stop["step"] > at_kill
    assert cluster.job(first)["Restarts"] == "1"

    cluster.pause(0)
    second = cluster.submit("tiny.sbatch", f"train.run_dir={run}", CHECK="0")
    assert cluster.wait_for_state(second, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert cluster.events(run, "start")[-1]["step"] == stop["step"]
    finished_as_whole(cluster, run, whole)


def test_a_lost_node_and_a_chain_under_torchrun(cluster, whole):
    run = "moved"
    cluster.pause(0.3)
    first = cluster.submit("tiny.sbatch", f"train.run_dir={run}", CHECK="0", GO_ON="chain", LAUNCHER="torchrun")
    wait_for_step(cluster, run, 11)
    cluster.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    cluster.start_again_now(first, 1)
    at_loss = max(cluster.losses(run))
    wait_for_step(cluster, run, at_loss + 2)
    assert cluster.events(run, "start")[-1]["step"] >= 10

    cluster.call("scancel", "--batch", "--signal=USR2", first)  # what Slurm does before the limit
    assert cluster.wait_for_state(first, "FAILED", "COMPLETED")["ExitCode"] == "75:0"
    cluster.pause(0)
    second = str(int(first) + 1)
    assert cluster.wait_for_state(second, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert "torchrun" in (cluster.folder / f"tiny-{second}.out").read_text()
    # A lost node may leave time for a checkpoint on SIGTERM.
    assert [event["reason"] for event in cluster.events(run, "stop")][-1] == "SIGUSR2"
    finished_as_whole(cluster, run, whole)


def test_nodes_that_doctor_finds_ill_are_left_out(cluster):
    (cluster.folder / "ill").write_text("node1")
    try:
        job = cluster.submit("tiny.sbatch", "--dry-run")
        assert cluster.wait_for_state(job, "FAILED", "COMPLETED")["ExitCode"] == "1:0"
        after = cluster.wait_for(
            "a job without node1", lambda: [n for n in cluster.call("squeue", "-h", "-t", "all", "-o", "%i").split() if int(n) > int(job)]
        )[0]
        end = cluster.wait_for_state(after, "COMPLETED", "FAILED")
        assert (end["JobState"], end["ExcNodeList"], end["NodeList"]) == ("COMPLETED", "node1", "node[2-3]")
        (cluster.folder / "ill").write_text("node1 node2 node3")
        job = cluster.submit("tiny.sbatch", "--dry-run")
        cluster.wait_for_state(job, "FAILED")
        assert "doctor failed on every node" in (cluster.folder / f"tiny-{job}.out").read_text()
    finally:
        (cluster.folder / "ill").unlink()


def test_a_mistake_in_the_settings_is_not_tried_again(cluster):
    job = cluster.submit("tiny.sbatch", "optim.learning_rate=1", CHECK="0")
    end = cluster.wait_for_state(job, "FAILED", "COMPLETED")
    assert (end["JobState"], end["Restarts"]) == ("FAILED", "0")
    text = (cluster.folder / f"tiny-{job}.out").read_text()
    assert "failed: 2 rank" in text and "Did you mean 'optim.lr'?" in text and "only repeat" in text


def test_an_array_of_preprocessing_jobs_and_its_merge(cluster):
    folder = cluster.folder
    for number in range(5):
        (folder / f"g{number}.fa").write_text(f">c{number}\n{'ACGTTGCAAC' * (300 + number)}\n")
    (folder / "list.txt").write_text("".join(f"g{number}.fa\n" for number in range(5)))
    command = [sys.executable, "-m", "dnapretrain", "slurm", "preprocess", "--array", "3", "--cpus-per-task", "1"]
    subprocess.run([*command, "--output", "preprocess.sbatch"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    cluster.submit("preprocess.sbatch", "list.txt", "shards/array")
    cluster.wait_for("the merge", (folder / "shards/array.json").exists)
    one = [sys.executable, "-m", "dnapretrain", "preprocess", *(f"g{number}.fa" for number in range(5)), "--output", "shards/one"]
    subprocess.run(one, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for ending in ("bin", "idx", "bed"):
        assert (folder / f"shards/array.{ending}").read_bytes() == (folder / f"shards/one.{ending}").read_bytes()

    (folder / "g3.fa").write_text("not a genome")
    cluster.submit("preprocess.sbatch", "list.txt", "shards/bad")

    def merges() -> list[str]:
        return cluster.call("squeue", "-h", "-t", "all", "-n", "preprocess-merge", "-o", "%i").split()

    cluster.wait_for("a second merge waits", lambda: len(merges()) == 2)
    cluster.wait_for_state(max(merges(), key=int), "CANCELLED")
    assert not (folder / "shards/bad.json").exists()
