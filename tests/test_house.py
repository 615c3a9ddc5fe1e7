"""The house rules, held by a walk over the syntax trees: which room may import which, and who may touch the outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    ("", "_core", "errors"),  # "": the package itself, for its version
    ("config",),
    ("config_rules",),
    ("config_file",),
    ("data",),
    ("parallel",),
    ("model",),
    ("evaluate",),
    ("report",),
    ("convert",),
    ("train",),
    ("adapt",),
    ("plan", "simulate", "slurm", "verify", "verify_layouts", "doctor"),
    ("cli", "__main__"),
    ("tools",),
)
"""Imports go from a room to itself or to the left."""
SUB_ROOMS = {
    "data": (("formats",), ("shards",), ("genes", "variants", "corpora", "tokens", "look"), ("sampling",), ("audit",)),
    "adapt": (
        ("extras",),
        ("metrics", "pictures"),
        ("sequences",),
        ("backbones",),
        ("embedding", "variants"),
        ("training",),
        ("generation",),
        ("benchmarks",),
    ),
}
"""The rooms within large ones, in the same way; those of one entry do not know each other."""
LAUNCH_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
MEGATRON_FILES = {
    "dnapretrain/evaluate/heldout.py",
    "dnapretrain/model/attention_kernels.py",
    "dnapretrain/model/build.py",
    "dnapretrain/model/cross_entropy.py",
    "dnapretrain/model/decoder.py",
    "dnapretrain/model/encoder.py",
    "dnapretrain/model/kernels.py",
    "dnapretrain/model/layers.py",
    "dnapretrain/model/paths.py",
    "dnapretrain/model/schedule_player.py",
    "dnapretrain/model/transformer_engine.py",
    "dnapretrain/parallel/cpu_engine.py",
    "dnapretrain/parallel/foreach_kernels.py",
    "dnapretrain/parallel/groups.py",
    "dnapretrain/train/checkpoint.py",
    "dnapretrain/train/checkpoint_writer.py",
    "dnapretrain/train/continued.py",
    "dnapretrain/train/fp8_scales.py",
    "dnapretrain/train/optimizer.py",
    "dnapretrain/train/run.py",
    "dnapretrain/train/save_plan.py",
    "dnapretrain/train/load_shares.py",
    "dnapretrain/train/save_shares.py",
    "dnapretrain/train/step_kernels.py",
    "dnapretrain/train/trainer.py",
}
"""The files to look at when the pin is raised. Add one on purpose only."""


def files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for folder in ("dnapretrain", "tools") for path in (ROOT / folder).rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """Dotted names of all imports, also those within functions; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def room(dotted: str) -> int:
    """Number of the room of `dnapretrain.x.y` or `tools.x`."""
    first, _, rest = dotted.partition(".")
    name = "tools" if first == "tools" else rest.partition(".")[0]
    # A name such as __version__ belongs to the package itself.
    known = [
        number for number, names in enumerate(ROOMS) if name in names or (name.startswith("__") and name != "__main__" and number == 0)
    ]
    if not known:
        raise LookupError(f"{dotted} is in no room: add it to ROOMS, where it belongs")
    return known[0]


def sub_room(dotted: str) -> tuple[str, str, int] | None:
    """Large room, room within it and its number; None elsewhere."""
    parts = dotted.split(".")
    if parts[0] != "dnapretrain" or len(parts) < 3 or parts[1] not in SUB_ROOMS:
        return None
    return next(((parts[1], parts[2], number) for number, names in enumerate(SUB_ROOMS[parts[1]]) if parts[2] in names), None)


def may_see(path: str, name: str) -> bool:
    """Whether a file of a large room may import `name`, as far as the rooms within it go."""
    own, other = (sub_room(dotted) for dotted in (path.removesuffix(".py").replace("/", "."), name))
    return own is None or other is None or own[0] != other[0] or own == other or other[2] < own[2]


def broken_rules(path: str, source: str) -> list[str]:
    """What `source` does that a file at `path` must not do."""
    parts = Path(path).with_suffix("").parts
    own = room(".".join(part for part in parts if part != "__init__"))
    problems = []
    for name in imported(source):
        top = name.partition(".")[0]
        if name.startswith(".") and "shipped" not in parts:  # those files leave the package: they find each other in an exported folder
            problems.append(f"{path}: relative import {name}")
        if top in ("dnapretrain", "tools") and room(name) > own:
            problems.append(f"{path} imports {name}, which is to its right")
        if not may_see(path, name):
            problems.append(f"{path} imports {name}, which is to its right within {parts[1]}/")
        if parts[:2] == ("dnapretrain", "data") and top in ("torch", "megatron", "transformer_engine", "transformers"):
            problems.append(f"{path} imports {name}: data/ works without it")
        if top == "megatron" and path not in MEGATRON_FILES:
            problems.append(f"{path} imports {name}: not one of MEGATRON_FILES")
    if parts[:2] != ("dnapretrain", "parallel"):
        texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        launch = [text for text in texts if text in LAUNCH_VARIABLES or text.startswith("SLURM_")]
        problems += [f"{path} names {text}: only parallel/ reads the launch environment" for text in launch]
    return problems


@pytest.mark.parametrize("path", files())
def test_file_keeps_the_rules(path: str) -> None:
    assert broken_rules(path, (ROOT / path).read_text()) == []


def test_the_walk_sees_all_files() -> None:
    assert {"dnapretrain/cli/__init__.py", "dnapretrain/data/sampling/samples.py", "tools/preprocess.py"} <= set(files())


def test_megatron_files_are_exactly_those() -> None:
    importers = {path for path in files() if any(name.partition(".")[0] == "megatron" for name in imported((ROOT / path).read_text()))}
    assert importers == MEGATRON_FILES


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("dnapretrain/data/formats/fasta.py", "from dnapretrain.model.build import build_chunks"),
        ("dnapretrain/data/formats/fasta.py", "def late():\n    from dnapretrain.parallel import platform"),
        ("dnapretrain/data/formats/fasta.py", "def late():\n    import torch.utils"),
        ("dnapretrain/data/formats/fasta.py", "import megatron.core"),
        ("dnapretrain/data/formats/fasta.py", "from dnapretrain.data.shards.shard import open_shard"),
        ("dnapretrain/data/genes/extract.py", "from dnapretrain.data.variants.vcf import open_vcf"),
        ("dnapretrain/adapt/sequences/tables.py", "from dnapretrain.adapt.training.finetune import finetune"),
        ("dnapretrain/adapt/embedding/probe.py", "from dnapretrain.adapt.variants.score import score_sites"),
        ("dnapretrain/errors.py", "from dnapretrain import config"),
        ("dnapretrain/errors.py", "import dnapretrain.cli"),
        ("dnapretrain/report/page.py", "from tools._clone import run"),
        ("dnapretrain/convert/hf.py", "from dnapretrain.train.run import pretrain"),
        ("dnapretrain/convert/hf.py", "from . import native"),
        ("dnapretrain/convert/hf.py", "from megatron.core import parallel_state"),
        ("dnapretrain/train/run.py", "import os\nrank = os.environ['RANK']"),
        ("dnapretrain/cli/__init__.py", "import os\nrank = os.environ.get('SLURM_PROCID')"),
    ],
)
def test_breaking_a_rule_is_seen(path: str, source: str) -> None:
    assert broken_rules(path, source) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "dnapretrain/data/shards/shard.py",
            "from dnapretrain import __version__, _core\nfrom dnapretrain.data.formats.fasta import FastaFile",
        ),
        ("dnapretrain/parallel/platform.py", "import os, torch\nrank = os.environ['RANK']"),
        ("dnapretrain/train/run.py", "from megatron.core import parallel_state\nfrom dnapretrain.convert.native import find_checkpoint"),
        ("tools/preprocess.py", "from dnapretrain.cli import main"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert broken_rules(path, source) == []


def test_a_file_in_no_room_is_refused() -> None:
    with pytest.raises(LookupError, match="no room"):
        room("dnapretrain.shed.tools")


def test_files_of_tests_have_names_of_their_own() -> None:
    """Their folders are no packages: of two files with one name pytest loads the first alone."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
