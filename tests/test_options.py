"""Every option does something: each config key and each command-line option is read where the work is done."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import HANG_SECONDS

from dnapretrain import cli, config
from dnapretrain.config import RunConfig, Section, SourceConfig
from dnapretrain.config_file import config_keys

ROOT = Path(__file__).resolve().parents[1]
GOLDEN_KEYS = Path(__file__).parent / "golden" / "config_keys.txt"
HEAVY = ("torch", "megatron", "transformer_engine", "transformers", "matplotlib")


def sections(section: type[Section] = RunConfig, path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """(dotted path, class) of all sections, sources of data.train too."""
    yield path, section
    for name, field in section.model_fields.items():
        child = field.annotation
        if name == "train" and section is config.DataConfig:
            child = SourceConfig
        if isinstance(child, type) and issubclass(child, Section):
            yield from sections(child, f"{path}.{name}".strip("."))


def reads(source: str) -> set[tuple[str, str]]:
    """(owner, attribute) of all attribute reads that work is done with.

    The owner is the last name before the dot (`data` in `self._data.seed`); for `self` the class around it, for
    an annotated parameter its class too. Left out is what only checks or shows settings.
    """
    found: set[tuple[str, str]] = set()

    def visit(node: ast.AST, classes: dict[str, str]) -> None:
        if isinstance(node, ast.ClassDef):
            classes = {**classes, "self": node.name}
        elif isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            classes = {**classes, **{arg.arg: ast.unparse(arg.annotation) for arg in arguments if arg.annotation}}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id if isinstance(node.value, ast.Name) else ""
            found.add((owner.lstrip("_"), node.attr))
            if isinstance(node.value, ast.Name):
                found.add((classes.get(owner, ""), node.attr))
        for child in ast.iter_child_nodes(node):
            visit(child, classes)

    visit(ast.parse(source), {})
    return found


def working_reads() -> set[tuple[str, str]]:
    """Reads in the package; of config/ only its derived numbers (methods of the sections), of rules between settings none."""
    found: set[tuple[str, str]] = set()
    for path in sorted((ROOT / "dnapretrain").rglob("*.py")):
        room = path.relative_to(ROOT / "dnapretrain").parts[0]
        if room == "config":
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    found |= reads(ast.unparse(node))
        elif room != "config_rules":
            found |= reads(path.read_text())
    return found


def unread(section_path: str, section: type[Section], found: set[tuple[str, str]]) -> list[str]:
    owners = {section_path.rpartition(".")[2] or "config", section.__name__}
    if section is SourceConfig:
        owners |= {"source", "config"}  # loop variables
    return [f"{section_path}.{name}" for name in section.model_fields if not any((owner, name) in found for owner in owners)]


def test_every_config_key_is_read_by_the_code_that_works_with_it() -> None:
    found = working_reads()
    assert [name for path, section in sections() for name in unread(path, section, found)] == []


def test_an_option_without_effect_would_be_seen() -> None:
    found = reads("def f(config: OptimConfig, data):\n    x = config.lr + data.split.seed\n    data.stride = 1")
    assert "optim.lr" not in unread("optim", config.OptimConfig, found)
    assert "optim.min_lr" in unread("optim", config.OptimConfig, found)
    assert "data.split.seed" not in unread("data.split", config.SplitConfig, found)
    assert "data.seed" in unread("data", config.DataConfig, found)
    assert "data.stride" in unread("data", config.DataConfig, found)  # written, not read


def test_config_keys_change_only_on_purpose() -> None:
    """After a change on purpose: write the keys into the golden file, and the change into CHANGELOG.md."""
    assert config_keys() == GOLDEN_KEYS.read_text().split()


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all verbs and of what they divide into."""
    children = [child for action in parser._actions if isinstance(action, argparse._SubParsersAction) for child in action.choices.values()]
    if not children:
        yield parser
    for child in children:
        yield from parsers(child)


VERBS = {parser.prog: parser for parser in parsers(cli._parser())}


def unread_options(parser: argparse.ArgumentParser, source: str) -> list[str]:
    used = {name for owner, name in reads(source) if owner == "arguments"}
    return [action.dest for action in parser._actions if action.dest not in used | {"help", "version"}]


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_line_option_is_read(verb: str) -> None:
    seen = [VERBS[verb].get_default("verb")]
    for function in seen:  # it grows: what is given all arguments reads options that verbs share
        names = re.findall(r"(\w+)\(arguments[,)]", inspect.getsource(function))
        helpers = [getattr(inspect.getmodule(function), name, None) for name in names]
        seen += [helper for helper in dict.fromkeys(helpers) if inspect.isfunction(helper) and helper not in seen]
    source = "".join(textwrap.dedent(inspect.getsource(function)) for function in seen)
    assert unread_options(VERBS[verb], source) == []


def test_a_command_line_option_without_effect_would_be_seen() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--used")
    parser.add_argument("--idle")
    assert unread_options(parser, "def f(arguments):\n    return arguments.used") == ["idle"]


def test_all_verbs_are_looked_at() -> None:
    assert {verb.split()[1] for verb in VERBS} == {
        *("corpus", "lint", "preprocess", "merge", "extract", "haplotypes", "inspect", "train-bpe", "dedup", "cluster", "leakage"),
        *("recipes", "pretrain", "evaluate", "plan", "simulate", "slurm", "convert", "generate", "report", "verify", "doctor"),
        *("locate", "was-seen", "coverage", "embed", "probe", "score", "finetune", "predict", "benchmark"),
        *("recovery", "design", "check-cds"),
    }


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dnapretrain.data.shards.preprocess import preprocess

    folder = tmp_path_factory.mktemp("startup")
    (folder / "small.fa").write_text(">a\nACGTACGTACGT\n")
    preprocess([folder / "small.fa"], folder / "small")
    return folder / "small"


def heavy_modules(arguments: list[str]) -> list[str]:
    """Which of HEAVY a fresh process has imported after running the command line with `arguments`."""
    code = f"""
import contextlib, io, json, sys
from dnapretrain.cli import main
printed = io.StringIO()
with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
    code = main({arguments!r})
    assert code == 0, code
assert printed.getvalue()
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=HANG_SECONDS)
    assert result.returncode == 0, result.stderr
    modules: list[str] = json.loads(result.stdout)
    return modules


@pytest.mark.parametrize("verb", ["", *sorted({verb.split()[1] for verb in VERBS})])
def test_help_imports_nothing_heavy(verb: str) -> None:
    assert heavy_modules([*verb.split(), "--help"]) == []


def test_data_verbs_import_nothing_heavy(shard: Path) -> None:
    assert heavy_modules(["lint", f"{shard}.fa"]) == []
    assert heavy_modules(["inspect", str(shard), "--check"]) == []
    assert heavy_modules(["inspect", str(shard), "--locus", "small:a:2-5"]) == []
    assert heavy_modules(["preprocess", f"{shard}.fa", "--output", str(shard), "--overwrite", "--workers", "2"]) == []


def test_dry_run_imports_nothing_heavy() -> None:
    assert heavy_modules(["pretrain", "examples/quickstart/gpt.yaml", "--dry-run"]) == []


def test_the_look_at_imports_can_fail(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(TRAINING_STEP) + "\n")
    assert heavy_modules(["report", str(tmp_path)]) == ["matplotlib"]


TRAINING_STEP = {
    **{"kind": "train", "step": 1, "loss": 1.4, "bits_per_base": 2.0, "grad_norm": 1.0, "lr": 1e-3, "num_tokens": 8, "updated": True},
    **{
        "seconds": 0.1,
        "consumed_samples": 1,
        "consumed_tokens": 8,
        "consumed_bases": 8,
        "tokens_per_second": 80,
        "data_wait": 0.0,
        "tflops": 0.0,
    },
}


def test_help_takes_less_than_a_second() -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "dnapretrain", "--help"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=dict(os.environ)
        )
        after = os.times()  # the processor's time: others may use the machine
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert statistics.median(seconds) < 1.0
