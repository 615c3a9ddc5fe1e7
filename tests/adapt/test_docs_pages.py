"""The commands of the pages in docs/ run, in their order, and print what stands there, other numbers aside."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dnapretrain.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("embed.md", "probe.md", "score.md", "finetune.md", "benchmark.md", "generate.md", "in-loop-probes.md", "attention.md")
VERBS = {
    "generate.md": ("generate", "finetune", "design", "check-cds", "recovery"),
    "in-loop-probes.md": ("pretrain", "evaluate"),
    "attention.md": ("evaluate",),
}
"""Whose options a page names, where it is not the one it is called as."""
PICTURES = (
    *("embed", "probe", "score", "benchmark", "generate-cds", "generate-design", "generate-recovery"),
    *("in-loop-probes", "attention"),
)
QUICK = {"pretrain": ["train.train_steps=4", "optim.lr_warmup_steps=1", "log.log_interval=4"]}
"""A model to run on, not to be judged."""
FEWER = {"--num-samples": 40, "--num-prompts": 15, "--trials": 2}
"""At most so many: what is printed of them is as many lines, and numbers. Everything else runs as it stands."""


def commands(page: str) -> list[tuple[list[str], str]]:
    """Arguments of each `$ dnapretrain`, and the lines below it."""
    found: list[tuple[list[str], str]] = []
    for block in re.findall(r"^```\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            found.append((shlex.split(command), output))
    return found


def quick(arguments: list[str]) -> list[str]:
    """`arguments` with no more of anything than FEWER says."""
    before = ["", *arguments[:-1]]
    return [str(min(FEWER[name], int(value))) if name in FEWER else value for name, value in zip(before, arguments, strict=True)]


def without_numbers(text: str) -> list[str]:
    """Lines with # for a number, one blank for several; which row is best is a number too."""
    lines = (re.sub(r"[-+]?\d[\d,.]*\d|[-+]?\d", "#", line.replace("<- best of the folds", "")) for line in text.splitlines())
    return [" ".join(line.split()) for line in lines]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with the examples, to write runs/ into."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "runs").mkdir()
    return folder


@pytest.mark.slow
def test_every_command_of_the_pages_runs(clone, capsys, monkeypatch):
    monkeypatch.chdir(clone)
    num_compared = 0
    for page in PAGES:
        for (program, verb, *arguments), wanted in commands(page):
            assert program == "dnapretrain"
            if verb == "pretrain":  # in a process of its own: it changes torch for good
                few = ["data.probes.sites=2"] if "probes" in arguments[0] else []
                command = [
                    sys.executable,
                    "-m",
                    "dnapretrain",
                    verb,
                    *arguments,
                    *QUICK[verb],
                    *few,
                ]
                environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                assert done.returncode == 0, done.stderr
                continue
            assert main([verb, *quick(arguments)]) == 0
            said = capsys.readouterr()
            if wanted.strip():
                num_compared += 1
                lines = without_numbers(said.err + said.out)
                assert [line for line in lines if line in without_numbers(wanted)] == without_numbers(wanted), said
    assert num_compared == 17
    pictures = {
        name: (ROOT / "docs" / name).read_bytes()[:4] for page in PAGES for name in re.findall(r"!\[.*?\]\((.*?)\)", page_text(page))
    }
    assert pictures == dict.fromkeys((f"{name}.png" for name in PICTURES), b"\x89PNG")


def page_text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def test_the_python_of_the_embed_page(clone, monkeypatch):
    """After the test above: what it wrote has the columns that the page shows."""
    import pyarrow.parquet as pq

    monkeypatch.chdir(clone)
    [expression] = re.findall(r"^>>> (pq\.read_table.*)$", page_text("embed.md"), re.M)
    assert repr(eval(expression, {"pq": pq})) in page_text("embed.md")


def test_the_options_that_pages_name_are_there(capsys):
    for page in PAGES:
        for verb in VERBS.get(page, (page.removesuffix(".md"),)):
            with pytest.raises(SystemExit):
                main([verb, "--help"])
        known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
        assert set(re.findall(r"`(--[a-z][a-z-]*)", page_text(page))) <= known
