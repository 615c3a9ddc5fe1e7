"""The command line itself: how arguments are read, what is printed where, how local ranks are started and ended."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dnapretrain import __version__, cli
from dnapretrain.cli import main
from dnapretrain.errors import CheckpointError, ConfigError
from dnapretrain.parallel import launch
from dnapretrain.parallel.signals import STOP_SIGNALS

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "examples" / "quickstart" / "gpt.yaml")
VERBS = next(list(action.choices) for action in cli._parser()._actions if action.metavar == "VERB")
SCRIPTS = [verb.replace("-", "_").replace("inspect", "inspect_shard") for verb in VERBS]
"""`inspect` is a module of the standard library."""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """What `pretrain` starts on this machine, in place of starting it; checks of data are left out."""
    calls: list[tuple[list[str], int]] = []
    monkeypatch.setattr(launch, "launch_local", lambda arguments, ranks: calls.append((arguments, ranks)) or 0)
    monkeypatch.setattr("dnapretrain.data.sampling.run_data.open_data", lambda *_: None)
    return calls


# Arguments


@pytest.mark.parametrize(
    "arguments",
    [
        [CONFIG, "optim.lr=1e-3", "parallel.tp=2", "--ranks", "2"],
        [CONFIG, "--ranks", "2", "optim.lr=1e-3", "parallel.tp=2"],
        [CONFIG, "optim.lr=1e-3", "--ranks", "2", "parallel.tp=2"],
        ["--ranks=2", CONFIG, "optim.lr=1e-3", "parallel.tp=2"],
    ],
)
def test_settings_may_stand_before_and_after_options(launched: list[Any], arguments: list[str]) -> None:
    assert main(["pretrain", *arguments]) == 0
    assert launched == [(["pretrain", CONFIG, "optim.lr=1e-3", "parallel.tp=2"], 2)]


def test_without_ranks_one_model_copy_is_started_on_cpu(launched: list[Any]) -> None:
    assert main(["pretrain", CONFIG, "parallel.tp=2", "parallel.pp=2"]) == 0
    assert [ranks for _, ranks in launched] == [4]


def test_what_is_given_is_what_preprocess_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "dnapretrain.data.shards.preprocess.preprocess", lambda inputs, output, **rest: seen.update(rest, inputs=inputs, output=output)
    )
    monkeypatch.setattr("dnapretrain.data.look.inspect.inspect_shard", lambda prefix: {})
    monkeypatch.setattr("dnapretrain.data.look.inspect.format_inspection", lambda inspection: "inspected")
    numbers = ["--workers", "3", "--min-n-run", "4", "--min-length", "5"]
    chosen = ["--max-n-fraction", "0.1", "--include-bed", "i.bed", "--exclude-bed", "e.bed", "--on-error", "skip"]
    assert main(["preprocess", "a.fa", "b.fa", "--output", "o", *numbers, *chosen, "--assembly", "x", "--sha256", "--overwrite"]) == 0
    assert seen == {
        "inputs": [Path("a.fa"), Path("b.fa")],
        "output": Path("o"),
        "workers": 3,
        "min_n_run": 4,
        "min_length": 5,
        "assembly": "x",
        "sha256": True,
        "overwrite": True,
        "max_n_fraction": 0.1,
        "include_bed": Path("i.bed"),
        "exclude_bed": Path("e.bed"),
        "on_error": "skip",
        "restart": False,
        "encoding": "ascii",
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: VERB. See dnapretrain --help."),
        (["prepare"], "argument VERB: invalid choice: 'prepare' (choose from "),
        (["preprocess", "a.fa"], "the following arguments are required: --output. See dnapretrain preprocess --help."),
        (["preprocess", "a.fa", "--output", "o", "--workers", "two"], "argument --workers: invalid int value: 'two'"),
        (["preprocess", "a.fa", "--output", "o", "--over"], "unrecognized arguments: --over"),
        (["inspect", "a", "b"], "unrecognized arguments: b"),
        (["pretrain", "a.yaml", "--rank", "2"], "unrecognized arguments: --rank"),
        (
            ["convert", "to-gguf", "a", "b"],
            "argument DIRECTION: invalid choice: 'to-gguf' (choose from 'to-hf', 'from-hf', 'from-megatron')",
        ),
        (["verify", "resume"], "the following arguments are required: CONFIG"),
    ],
)
def test_a_wrong_command_line_is_one_line_on_stderr(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"dnapretrain {__version__}\n"


@pytest.mark.parametrize(("ranks", "says"), [("0", "--ranks = 0 is below 1. Give"), ("-1", "--ranks = -1 is below 1. Give")])
def test_ranks_below_one_are_refused(ranks: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", CONFIG, f"--ranks={ranks}"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("environment", [{"RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "1", "SLURM_NTASKS": "8"}])
def test_ranks_cannot_be_started_by_a_rank(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain", CONFIG, "--ranks", "2"]) == 2
    assert capsys.readouterr().err == "error: --ranks = 2, but torchrun or srun has started the ranks already. Remove --ranks.\n"


@pytest.mark.parametrize(
    ("environment", "is_rank"),
    [
        ({}, False),
        ({"RANK": "0", "WORLD_SIZE": "1"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # a shell within an allocation
    ],
)
def test_a_rank_knows_that_it_is_one(environment: dict[str, str], is_rank: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch.is_launched() is is_rank


# What verbs raise


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (CheckpointError("two\nlines of\n  text."), 2, "error: two lines of text.\n"),
        (
            IsADirectoryError(21, "Is a directory", "out.fa"),
            2,
            "error: out.fa: Is a directory. Check the path, its permissions and the free space.\n",
        ),
        (
            OSError(28, "No space left on device"),
            2,
            "error: No space left on device. Check the path, its permissions and the free space.\n",
        ),
        (ImportError("cannot import name '_core' from 'dnapretrain'"), 2, "error: the native core is not built. Run `pip install -e .`"),
        (KeyboardInterrupt(), 130, "stopped by the user\n"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_how_failures_are_told(
    raised: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("dnapretrain.data.look.inspect.inspect_shard", fail)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # main replaces it when the pipe is broken
    assert main(["inspect", "x"]) == code
    assert capsys.readouterr().err.startswith(says)


@pytest.mark.parametrize("raised", [ValueError("ours"), OSError("no file, no number"), ImportError("No module named 'torch'")])
def test_faults_of_ours_keep_their_traceback(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("dnapretrain.data.look.inspect.inspect_shard", fail)
    with pytest.raises(type(raised)):
        main(["inspect", "x"])


def test_a_reader_that_leaves_early_is_no_error(small_shard: Path) -> None:
    command = f"'{sys.executable}' -m dnapretrain inspect '{small_shard}' --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")


# The scripts of a clone


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_of_the_clone_shows_the_help_of_its_verb(script: str, tmp_path: Path) -> None:
    command = [sys.executable, "-S", str(ROOT / "tools" / f"{script}.py"), "--help"]  # -S: without site-packages, so without installation
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: dnapretrain {script.removesuffix('_shard').replace('_', '-')} ")


def test_each_verb_has_a_script_that_bears_no_name_of_the_standard_library() -> None:
    scripts = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert scripts == {*SCRIPTS, "_clone"}
    assert not scripts & set(sys.stdlib_module_names)


def test_script_of_the_clone_works_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    command = [sys.executable, str(ROOT / "tools" / "preprocess.py"), "a.fa", "--output", "shard"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "shard.bin").read_bytes() == b"ACGT"


# Local ranks, played by a small program


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `python -m dnapretrain` be the given program in the ranks."""
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.3)

    def prepare(program: str) -> None:
        (tmp_path / "dnapretrain").mkdir()
        head = "import os, signal, sys, time\nrank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])\n"
        (tmp_path / "dnapretrain" / "__main__.py").write_text(head + program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)

    return prepare


def test_ranks_get_their_places_and_arguments(play: Any, tmp_path: Path) -> None:
    play(
        "names = ('LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')\n"
        "open(f'rank{rank}', 'w').write(' '.join([*sys.argv[1:], *(os.environ[name] for name in names)]))"
    )
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    assert launch.launch_local(["pretrain", "a b"], 2) == 0
    places = [(tmp_path / f"rank{rank}").read_text().rsplit(maxsplit=1) for rank in range(2)]
    assert [place for place, _ in places] == ["pretrain a b 0 2 2 127.0.0.1", "pretrain a b 1 2 2 127.0.0.1"]
    assert len({port for _, port in places}) == 1
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


def test_an_error_of_all_ranks_is_shown_once_and_sets_the_exit_code(play: Any, capfdbinary: Any) -> None:
    play("sys.stderr.write('error: no such shard\\n'); sys.exit(2)")
    assert launch.launch_local([], 3) == 2
    assert capfdbinary.readouterr().err == b"error: no such shard\n"


def test_a_failing_rank_ends_the_others(play: Any, capfdbinary: Any) -> None:
    play("if rank == 1:\n    sys.exit('error: rank 1 only')\ntime.sleep(3600)")
    started = time.monotonic()
    assert launch.launch_local([], 2) == 1
    assert time.monotonic() - started < 3000
    assert capfdbinary.readouterr().err == b"error: rank 1 only\n"


def test_a_killed_rank_is_named(play: Any, capfdbinary: Any) -> None:
    play("if rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(3600)")
    assert launch.launch_local([], 2) == 137
    assert b"error: rank 1 was killed by SIGKILL." in capfdbinary.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_signals_reach_the_ranks(play: Any, capfdbinary: Any, tmp_path: Path, number: int, code: int) -> None:
    play(
        "if True:\n"
        "    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))\n"
        "    try:\n"
        "        open(f'up{rank}', 'w').close()\n"
        "        time.sleep(3600)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.stderr.write('stopped by the user\\n'); sys.exit(130)\n"
    )

    def send_when_up() -> None:
        while not ((tmp_path / "up0").exists() and (tmp_path / "up1").exists()):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send_when_up)
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    sender.start()
    try:
        assert launch.launch_local([], 2) == code
        os.kill(os.getpid(), number)  # the launcher's launcher passes it on too: the exit code stays
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    sender.join()
    assert capfdbinary.readouterr().err == (b"stopped by the user\n" if number == signal.SIGINT else b"")


def test_where_a_rank_cannot_be_started_none_is_left(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    play("time.sleep(3600)")
    popen, started = subprocess.Popen, []

    def no_third(*arguments: Any, **options: Any) -> Any:
        if len(started) == 2:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(launch.subprocess, "Popen", no_third)
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    files = len(list(Path("/proc/self/fd").iterdir()))
    for arguments in (["pretrain"], []):
        with pytest.raises(ConfigError, match=r"rank 2 of 4 could not be started: .*Resource temporarily unavailable"):
            launch.launch_local(arguments, 4)
        assert [process.returncode for process in started] == [-signal.SIGKILL] * 2
        for process in started:
            process.stderr.close()
        started.clear()
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_a_ctrl_c_that_comes_twice_is_one_signal_and_the_next_one_means_now(
    play: Any, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal sends it to launcher and rank, and a busy launcher passes it on late."""
    play(
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "sys.modules.pop('dnapretrain', None)\n"
        "from dnapretrain.parallel import signals\n"
        "signals.SAME_SECONDS = 0.1\n"
        "with signals.StopSignals() as stop:\n"
        "    while True:\n"
        "        open(f'heard{len(stop._first_at)}', 'w').write(str(os.getpid()))\n"
        "        time.sleep(0.01)\n"
    )

    def heard(ways: int) -> int:
        while not ((file := tmp_path / f"heard{ways}").exists() and (text := file.read_text())):
            time.sleep(0.01)
        return int(text)

    left = []

    def press_twice() -> None:
        rank = heard(0)
        os.kill(rank, signal.SIGINT)
        assert heard(1) == rank
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        left.append(heard(2) == rank)
        time.sleep(0.3)
        (tmp_path / "heard2").unlink()
        left.append(heard(2) == rank)  # it goes on
        os.kill(os.getpid(), signal.SIGINT)

    presses = threading.Thread(target=press_twice)
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    presses.start()
    try:
        assert launch.launch_local(["pretrain"], 1) == 130
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    presses.join()
    assert left == [True, True]
    assert capfdbinary.readouterr().err.startswith(b"stopped at once by SIGINT, the second signal")


def test_the_parser_is_built_without_side_effects() -> None:
    assert cli._parser().format_help() == cli._parser().format_help()
