"""`doctor` says what is there and which path each part takes."""

from __future__ import annotations

import json
import subprocess
import sys

from dnapretrain import doctor


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
