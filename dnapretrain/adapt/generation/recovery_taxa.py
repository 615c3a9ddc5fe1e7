"""Sequence recovery by taxon, as GENERator's evaluation has it: prompts of up to 6,144 bases, the next 30, the likeliest token each time.

Each sequence of a table is one test: its last bases are to be recovered from what stands before them. Of genomes, windows are spread
evenly over the records instead. Prompts are cut on their left to whole k-mers; an N in a prompt is read as the model reads it, one
among the bases to be recovered leaves the test out, counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__
from dnapretrain.adapt.backbones.folder import as_hf_folder, check_decoder
from dnapretrain.adapt.embedding.embedding_cache import folder_digest
from dnapretrain.adapt.generation.compositions import wilson
from dnapretrain.adapt.generation.generate import Generator, Sampling
from dnapretrain.adapt.generation.prompts import Prompt
from dnapretrain.adapt.generation.recovery import KMER, NUM_BASES, PROMPT_BASES
from dnapretrain.adapt.metrics import NUM_BOOTSTRAP, plain, with_intervals
from dnapretrain.adapt.sequences.tables import TableOptions, read_rows
from dnapretrain.data.formats.inputs import strip_suffixes
from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError

RESULT = "recovery.json"
FIGURES = ("base_accuracy", "next_kmer_accuracy")
TABLE = "recovery.tsv"


@dataclass(frozen=True)
class RecoverySettings:
    """What a result depends on, beside model and sequences."""

    prompt_bases: int = PROMPT_BASES
    num_bases: int = NUM_BASES
    num_prompts: int | None = None
    """Windows spread over the sequences of each taxon; None: the end of each sequence."""
    batch_size: int = 8
    num_bootstrap: int = NUM_BOOTSTRAP

    def check(self) -> None:
        """Raise ConfigError for what cannot be."""
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value} is below 1.")


@dataclass
class RecoveryTests:
    """Prompts of a taxon and what follows them."""

    prompts: list[str] = field(default_factory=list)
    truths: list[str] = field(default_factory=list)
    too_short: int = 0
    """Sequences with no room for a prompt, of windows: for a whole one."""
    unknown: int = 0
    """Left out for another letter than A, C, G, T among the bases to be recovered."""

    def add(self, sequence: str, end: int, prompt_bases: int, num_bases: int) -> None:
        """The test whose last base is before `end`."""
        truth = sequence[end - num_bases : end]
        if set(truth) <= set("ACGT"):
            self.prompts.append(sequence[end - num_bases - prompt_bases : end - num_bases])
            self.truths.append(truth)
        else:
            self.unknown += 1


def read_taxa(paths: Sequence[Path], options: TableOptions) -> dict[str, list[str]]:
    """Sequences of each taxon: a label column's values, else one taxon for each file, under its name. Raises DataError."""
    taxa: dict[str, list[str]] = {}
    for path in paths:
        name = strip_suffixes(path.name)
        if options.label_columns == () and name in taxa:
            raise DataError(f"two files give the taxon '{name}'. Rename one, or name a column of taxa.")
        for row in read_rows(path, options):
            taxa.setdefault(next(iter(row.labels.values()), name), []).append(row.sequence)
    return taxa


def make_tests(sequences: Sequence[str], tokenizer: Tokenizer, context: int, settings: RecoverySettings) -> RecoveryTests:
    """The tests of a taxon. Raises ConfigError where the model's context has no room for a prompt and the new bases."""
    k = 1 if tokenizer.is_variable else tokenizer.k
    tokens_per_word = 1 if tokenizer.bpe is None else tokenizer.k  # at worst a byte pair is one base
    room = (context - 2) * k if tokenizer.bpe else (context - tokenizer.add_bos) * k
    longest = min(settings.prompt_bases, room - settings.num_bases - (-settings.num_bases % k)) // k * k
    if longest < tokens_per_word:
        raise ConfigError(f"the model's context of {context} tokens has no room for a prompt and {settings.num_bases} new bases.")
    tests = RecoveryTests()
    if settings.num_prompts is None:
        for sequence in sequences:
            prompt = min(longest, len(sequence) - settings.num_bases) // k * k
            if prompt < k:
                tests.too_short += 1
            else:
                tests.add(sequence, len(sequence), prompt, settings.num_bases)
        return tests
    width = longest + settings.num_bases
    places_N = np.array([max(0, len(sequence) - width + 1) for sequence in sequences])
    tests.too_short = int((places_N == 0).sum())
    ends_N = np.cumsum(places_N)
    count = min(settings.num_prompts, int(ends_N[-1]))
    for place in (np.arange(count) * int(ends_N[-1]) // max(1, count)).tolist():
        record = int(np.searchsorted(ends_N, place, side="right"))
        start = place - int(ends_N[record] - places_N[record])
        tests.add(sequences[record], start + width, longest, settings.num_bases)
    return tests


def score_tests(generator: Generator, tests: RecoveryTests, settings: RecoverySettings) -> dict[str, Any]:
    """The row of a taxon."""
    prompts = [Prompt(f"prompt{number}", bases) for number, bases in enumerate(tests.prompts, 1)]
    found = generator.continue_all(prompts, settings.num_bases, Sampling(temperature=0), batch_size=settings.batch_size)
    truth = np.array([list(bases) for bases in tests.truths])
    equal = np.array([list(one.generated) for one in found]) == truth
    lengths = [len(bases) for bases in tests.prompts]
    return {
        **figures(equal, settings.num_bootstrap),
        "by_position": equal.mean(axis=0).tolist(),
        "commonest_base": float(max((truth == base).mean() for base in "ACGT")),
        "num_prompts": len(prompts),
        "prompt_bases": {"least": min(lengths), "mean": float(np.mean(lengths)), "most": max(lengths)},
        "prompts_with_other_letters": sum(not set(bases) <= set("ACGT") for bases in tests.prompts),
        "too_short": tests.too_short,
        "left_out": tests.unknown,
    }


def figures(equal: NDArray[np.bool_], num_bootstrap: int = NUM_BOOTSTRAP) -> dict[str, dict[str, float]]:
    """Of [prompts, bases]: the share of bases that are right, with a bootstrap interval over prompts; and the share of prompts whose next
    6 are (not below 6 bases), with Wilson's."""
    interval = with_intervals(lambda each: {"mean": float(each.mean())}, equal.mean(axis=1), num_bootstrap=num_bootstrap)["mean"]
    found = {"base_accuracy": asdict(interval)}
    if equal.shape[1] >= KMER:
        found["next_kmer_accuracy"] = wilson(int(equal[:, :KMER].all(axis=1).sum()), len(equal))
    return found


def mean_of_taxa(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean over taxa of each figure. Its 95 % interval is put together from theirs (MOVER, Zou and Donner 2008): that of other
    sequences of the same taxa, not of other taxa."""
    found = {}
    for name in FIGURES:
        some = [row[name] for row in rows if name in row]
        if some:
            below, above = (math.sqrt(sum((one["value"] - one[side]) ** 2 for one in some)) / len(some) for side in ("low", "high"))
            value = float(np.mean([one["value"] for one in some]))
            found[name] = {"value": value, "low": value - below, "high": value + above}
    return found


def run_recovery(
    model: str | Path,
    taxa: dict[str, list[str]],
    output: Path,
    settings: RecoverySettings | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Recover, and write `output`/recovery.json and recovery.tsv; returns what the JSON holds.

    Raises ConfigError for settings and encoders, DataError for a taxon without a test.
    """
    settings = settings or RecoverySettings()
    settings.check()
    check_decoder(Path(model))
    output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    with as_hf_folder(model, say) as folder:
        generator = Generator(folder, device)
        if generator.controls and generator.controls.names:
            raise ConfigError(f"{model} was fine-tuned with conditions, which these sequences have none of. Give another model.")
        tests = {name: make_tests(sequences, generator.tokenizer, generator.context, settings) for name, sequences in taxa.items()}
        for name, one in tests.items():
            if not one.prompts:
                raise DataError(
                    f"{name}: no sequence to recover: {one.too_short:,} are too short for a prompt and {settings.num_bases} bases, "
                    f"{one.unknown:,} end in other letters than A, C, G, T. Lower prompt_bases, or give longer ones."
                )
        for name, one in tests.items():
            rows[name] = score_tests(generator, one, settings)
            say(f"{name}: {len(one.prompts):,} prompts")
        digest = folder_digest(folder)
    found = {
        "dnapretrain": __version__,
        "model": str(model),
        "model_digest": digest,
        "settings": asdict(settings),
        "taxa": rows,
        "mean": mean_of_taxa(list(rows.values())),
    }
    write_whole(output / RESULT, json.dumps(plain(found), indent=1) + "\n")
    write_whole(output / TABLE, _table(found))
    return found


def _table(found: dict[str, Any]) -> str:
    lines = ["taxon\tprompts\tbase_accuracy\tlow\thigh\tnext_kmer_accuracy\tkmer_low\tkmer_high\tcommonest_base"]
    for name, row in {**found["taxa"], "mean": found["mean"]}.items():
        cells = [row.get(metric, {}).get(part) for metric in ("base_accuracy", "next_kmer_accuracy") for part in ("value", "low", "high")]
        shown = ["NA" if cell is None else f"{cell:.5f}" for cell in [*cells, row.get("commonest_base")]]
        lines.append("\t".join([name, str(row.get("num_prompts", sum(one["num_prompts"] for one in found["taxa"].values()))), *shown]))
    return "\n".join(lines) + "\n"


def format_recovery(found: dict[str, Any]) -> str:
    """The result for the terminal."""
    num_bases, width = found["settings"]["num_bases"], max(len("mean of taxa"), *map(len, found["taxa"]))
    lines = [f"{'taxon':<{width}} {'prompts':>8}  {f'of the next {num_bases} bases':<24} {'next 6 all right':<24} commonest base"]
    for name, row in found["taxa"].items():
        lines.append(f"{name:<{width}} {row['num_prompts']:>8,}  {_cells(row)} {row['commonest_base']:.4f}")
        for count, why in ((row["too_short"], "sequences too short"), (row["left_out"], "tests with other letters than A, C, G, T")):
            if count:
                lines.append(f"  {count:,} {why}, left out")
    lines.append(
        f"{'mean of taxa':<{width}} {sum(row['num_prompts'] for row in found['taxa'].values()):>8,}  {_cells(found['mean'])}".rstrip()
    )
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> str:
    cells = [row.get(name) for name in ("base_accuracy", "next_kmer_accuracy")]
    return " ".join(f"{one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}]".ljust(24) if one else " " * 24 for one in cells)
