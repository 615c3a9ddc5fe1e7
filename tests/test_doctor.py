"""`doctor` says what is there and which path each part takes."""

from __future__ import annotations

import json
import subprocess
import sys

from dnapretrain import doctor
from dnapretrain.cli import main


def test_doctor_here():
    run = subprocess.run([sys.executable, "-m", "dnapretrain", "doctor", "--json"], capture_output=True, text=True, check=False)
    diagnosis = json.loads(run.stdout)
    assert run.returncode == 0 and diagnosis["ok"] and not diagnosis["problems"]
    assert diagnosis["packages"]["megatron-core"] == "0.16.1"
    assert {"device", "attention", "norm", "layers", "precision"} <= diagnosis["paths"].keys()
    text = doctor.format_diagnosis(diagnosis)
    assert "no problems found" in text and diagnosis["paths"]["attention"] in text


def test_a_missing_package_is_a_problem(monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "isal" else version(name))
    monkeypatch.setattr(doctor, "_paths", lambda: ({}, []))
    diagnosis = doctor.diagnose()
    assert not diagnosis["ok"]
    assert "PROBLEM: isal is not installed: pip install isal" in doctor.format_diagnosis(diagnosis)


def test_an_engine_that_does_not_start_is_a_problem(monkeypatch):
    def broken():
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(doctor, "_paths", broken)
    assert any("the engine does not start: no luck" in problem for problem in doctor.diagnose()["problems"])


def test_known_bad_versions_are_warned_of():
    versions = {"transformer-engine": "2.14.0+abc", "flash-attn": "2.8.4", "apex": "0.9.10.dev0"}
    engine, attention, apex = doctor._warnings(versions, nvidias_apex=False)
    assert "2.9 to 2.11" in engine and "up to 2.8.3" in attention and "is not NVIDIA's" in apex
    assert doctor._warnings({"transformer-engine": "2.11.0", "flash-attn": "2.8.3", "apex": "26.9"}, nvidias_apex=True) == []


def test_little_space_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "DRIVER", tmp_path)  # as on a GPU machine
    space = {"this folder": {"total": 2**40, "free": 2**20}, "/dev/shm": {"total": 2**26, "free": 2**26}}
    disk, shared = doctor._space_problems(space)
    assert "less than 1 GiB free" in disk and "64 MiB" in shared and "--ipc=host" in shared
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "none")
    assert doctor._space_problems({name: {"total": 2**26, "free": 2**31} for name in space}) == []


def test_exit_code_is_for_a_job_prologue(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_paths", lambda: ({}, []))
    monkeypatch.setattr(doctor, "_check", lambda ranks: ([], ["rank 0 (H100) multiplies matrices wrongly"]))
    assert main(["doctor", "--node"]) == 1
    assert "PROBLEM: rank 0 (H100) multiplies" in capsys.readouterr().out
    assert main(["doctor"]) == 0
