"""The verb evaluate: held-out figures of a run, a checkpoint or a Hugging Face folder, beside count models and as generated sequence."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnapretrain.cli.runs import add_run_arguments, check_before_launch
from dnapretrain.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dnapretrain.config import RunConfig
    from dnapretrain.data.shards.shard import Shard

GC_EDGES = (0.3, 0.4, 0.5, 0.6)
"""Classes of GC with --regions."""
PROBES = "probes"
Results = dict[str, dict[str, Any]]
"""By held-out set, and `PROBES`; what `--json` prints."""


def add_evaluate(verbs: Any) -> None:
    verb = verbs.add_parser("evaluate", help="loss and bits per base on held-out sets, beside count models; sequence recovery")
    verb.add_argument("model", type=Path, metavar="MODEL", help="a run, a checkpoint, or a Hugging Face folder (with --data)")
    add_run_arguments(verb)
    verb.add_argument("--data", type=Path, metavar="PREFIX_OR_FASTA", help="held-out sequence; default: what the run held out")
    verb.add_argument("--set", action="append", default=[], dest="sets", metavar="NAME", help="a held-out set (repeatable); default: all")
    verb.add_argument("--max-samples", type=int, metavar="N", help="score N samples, spread evenly over each set; default: all")
    verb.add_argument(
        "--regions",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="bits per base by the classes of a GFF3, GTF or BED file (repeatable, the first one wins), by case, GC and assembly; "
        "default: data.regions of the run",
    )
    verb.add_argument("--baselines", action="store_true", help="count models on the same targets (Markov, flanks, token frequencies)")
    verb.add_argument("--fit-data", type=Path, metavar="PREFIX_OR_FASTA", help="what they are fitted to; default: the run's training side")
    verb.add_argument("--fit-bases", type=int, default=20_000_000, metavar="N", help="fit to so many bases at most (default 20,000,000)")
    verb.add_argument("--recovery", type=int, metavar="N", help="decoders: prompts of N samples, share of the next bases recovered")
    verb.add_argument("--prompt-bases", type=int, default=6144, metavar="N", help="longest prompt of --recovery (default 6144)")
    verb.add_argument("--recovery-bases", type=int, default=30, metavar="N", help="bases to recover (default 30)")
    verb.add_argument(
        "--attention",
        type=Path,
        metavar="TSV",
        help="with --regions: attention on each class by layer and head, as a table and heat maps (.png beside it)",
    )
    verb.add_argument("--attention-samples", type=int, default=64, metavar="N", help="over N samples of each set (default 64)")
    verb.add_argument(
        "--probes", action="store_true", help="a run or checkpoint: what data.probes.genome=... data.probes.annotation=... ask"
    )
    verb.add_argument("--output", type=Path, metavar="JSON", help="write JSON there instead of printing")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(verb=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.backbones.folder import is_hf_folder
    from dnapretrain.parallel.launch import is_launched

    model, wants_more = arguments.model, arguments.baselines or arguments.recovery is not None or arguments.attention
    if is_launched() and (wants_more or arguments.data):
        raise ConfigError("--data, --baselines, --recovery and --attention need one process. Run them without torchrun or srun.")
    if arguments.probes and is_hf_folder(model):
        raise ConfigError(f"--probes asks runs and checkpoints; {model} is a Hugging Face folder. `dnapretrain convert` makes one of it.")
    _check_attention(arguments.attention)
    counts = ("max_samples", "recovery", "fit_bases", "attention_samples")
    for name, value in ((f"--{key.replace('_', '-')}", getattr(arguments, key)) for key in counts):
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value} is below 1.")
    with tempfile.TemporaryDirectory(prefix="dnapretrain-") as temporary:
        data = _shard(arguments.data, Path(temporary) / "data")
        fit = _shard(arguments.fit_data, Path(temporary) / "fit")
        of_other_data = ["data.regions.files={}"] if arguments.data else []  # those of the run name its own contigs
        overrides = [*of_other_data, *_region_settings(arguments.regions), *arguments.overrides]
        name = _set_name(arguments.data)
        if is_hf_folder(model):
            job = _folder_job(model, overrides, data, name)
        else:
            job = _native_job(model, overrides, data, name, arguments.probes)
        sets = tuple(arguments.sets) or job.sets
        if arguments.probes:
            _check_probes(job.config, sets)
        # First what transformers does: it must be imported before the CPU engine puts its own functions in place of torch's.
        more: Results = {}
        if arguments.recovery is not None:
            _add(more, _recovery(model, job.config, sets, arguments.recovery, arguments.prompt_bases, arguments.recovery_bases))
        if arguments.attention:
            _add(more, _attention(model, job.config, sets, arguments.attention, arguments.attention_samples))
        if arguments.baselines:
            _add(more, _baselines(job, sets, fit, arguments.fit_bases, arguments.max_samples))
        found = job.run(sets, arguments.max_samples, arguments.ranks, Path(temporary))
    if isinstance(found, int):
        return found
    _add(found, more)
    for values in (
        values for result in found.values() for classes in (result.get("regions") or {}).values() for values in classes.values()
    ):
        values["perplexity"] = 2 ** values["bits_per_base"]
    if arguments.output and found:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    elif found:
        print(json.dumps(found, indent=1) if arguments.json else "\n".join(_lines(found)))
    return 0


@dataclass(frozen=True)
class _Job:
    """A model and what it is evaluated on."""

    config: RunConfig
    sets: tuple[str, ...]
    """Default of --set."""
    knows_training: bool
    """Whether data.train is what the model was trained on."""
    run: Callable[[tuple[str, ...], int | None, int | None, Path], Results | int]
    """(sets, samples, ranks, folder for files) -> results; nothing on other ranks than the first; an exit code where ranks failed."""


def _shard(path: Path | None, scratch: Path) -> Path | None:
    """The shard itself, or one made of sequence files for the time of the command."""
    from dnapretrain.data.shards.preprocess import preprocess

    if path is None or Path(f"{path}.idx").is_file():
        return path
    preprocess([path], scratch, assembly=None)
    return scratch


def _region_settings(given: Sequence[str]) -> list[str]:
    """Settings for `--regions`: the files under their names (a file's own where none is given), and all that needs no file."""
    from dnapretrain.data.formats.inputs import strip_suffixes

    files: dict[str, str] = {}
    for text in given:
        name, equals, path = text.rpartition("=")
        name = name if equals else strip_suffixes(Path(path).name)
        if name in files:
            raise ConfigError(f"--regions gives two files the name '{name}'. Give them as NAME=FILE.")
        files[name] = path
    others = ["data.regions.soft_mask=true", "data.regions.assembly=true", f"data.regions.gc_edges={json.dumps(GC_EDGES)}"]
    return [f"data.regions.files={json.dumps(files)}", *others] if files else []


def _set_name(data: Path | None) -> str:
    """What the set of --data is called: as its file, unless a side of a split is called so."""
    from dnapretrain.data.formats.inputs import strip_suffixes

    name = strip_suffixes(data.name) if data else ""
    return f"data-{name}" if name in ("train", "valid", "test") else name


def _folder_job(directory: Path, overrides: Sequence[str], data: Path | None, name: str) -> _Job:
    from dnapretrain.adapt.backbones.heldout_hf import device_of, folder_config, folder_loss
    from dnapretrain.data.sampling.run_data import open_data

    if data is None:
        raise ConfigError(f"{directory} is a Hugging Face folder, which knows no held-out sets. Give --data PREFIX_OR_FASTA.")
    config = folder_config(directory, data, name, overrides)

    def run(sets: tuple[str, ...], max_samples: int | None, ranks: int | None, _: Path) -> Results:
        if ranks not in (None, 1):
            raise ConfigError(f"--ranks = {ranks}, but a Hugging Face folder is evaluated by one process. Remove --ranks.")
        streams = open_data(config).held_out_sets(sets)
        return {key: vars(value) for key, value in folder_loss(directory, config, streams, device_of(config), max_samples).items()}

    return _Job(config, (name,), False, run)


def _native_job(model: Path, overrides: Sequence[str], data: Path | None, name: str, probes: bool) -> _Job:
    from dnapretrain.convert.native import find_checkpoint, read_config
    from dnapretrain.parallel.launch import launch_local
    from dnapretrain.parallel.platform import launch_environment

    checkpoint = find_checkpoint(model)
    config = read_config(checkpoint, overrides)
    has_training = all(Path(f"{source.prefix}.idx").is_file() for source in config.data.train)
    settings = [*overrides, *(_data_settings(config, data, name, has_training) if data else [])]
    config = read_config(checkpoint, settings)

    def run(sets: tuple[str, ...], max_samples: int | None, wanted_ranks: int | None, folder: Path) -> Results | int:
        ranks = check_before_launch(config, wanted_ranks)
        if ranks > 1:
            flags = [part for key in sets for part in ("--set", key)]
            flags += ["--max-samples", str(max_samples)] if max_samples else []
            flags += ["--probes"] if probes else []
            result = folder / "results.json"
            code = launch_local(["evaluate", str(checkpoint), *settings, *flags, "--output", str(result)], ranks)
            return code or json.loads(result.read_text())
        from dnapretrain.train.run import evaluate

        losses, answers = evaluate(config, checkpoint, sets, max_samples, probes)
        results: Results = {key: vars(value) for key, value in losses.items()} | ({PROBES: answers} if answers else {})
        return results if launch_environment().rank == 0 else {}

    return _Job(config, (name,) if data else (), has_training, run)


def _data_settings(config: RunConfig, data: Path, name: str, has_training: bool) -> list[str]:
    """Settings that make `data` a held-out set; where the training shards are not there (imported checkpoints name none), it stands in."""
    settings = [f"data.valid={json.dumps({name: str(data)})}"]
    if not has_training:
        settings += [f"data.train={json.dumps([str(data)])}", "data.split={by: none}", "data.stages=[]"]
        settings.append(f"model.max_position_embeddings={config.max_positions}")
    return settings


def _recovery(model: Path, config: RunConfig, sets: tuple[str, ...], num_prompts: int, prompt_bases: int, num_bases: int) -> Results:
    from dnapretrain.adapt.backbones.folder import as_hf_folder
    from dnapretrain.adapt.backbones.heldout_hf import device_of
    from dnapretrain.adapt.generation.generate import Generator
    from dnapretrain.adapt.generation.recovery import sequence_recovery
    from dnapretrain.data.sampling.run_data import open_data

    if config.is_masked:
        raise ConfigError(f"--recovery asks {model} to continue sequence, but it is an encoder. Remove --recovery.")
    streams = open_data(config).held_out_sets(sets)
    with as_hf_folder(model) as directory:
        generator = Generator(directory, device_of(config))
        return {
            name: {"recovery": sequence_recovery(generator, stream, num_prompts, prompt_bases, num_bases)}
            for name, stream in streams.items()
        }


def _check_attention(table: Path | None) -> None:
    """Raise ConfigError for a table that the pictures beside it would replace."""
    if table is not None and table.suffix != ".tsv":
        raise ConfigError(f"--attention {table} does not end in .tsv. Rename it; the pictures are {table.with_suffix('.png').name}.")


def _check_probes(config: RunConfig, sets: Sequence[str]) -> None:
    if not config.data.probes.is_active:
        raise ConfigError("--probes has nothing to ask. Give data.probes.genome=PREFIX_OR_FASTA and data.probes.annotation=GFF_OR_GTF.")
    if PROBES in (sets or config.data.valid):
        raise ConfigError(f"--probes: a held-out set is called '{PROBES}', too. Name the others with --set.")


def _attention(model: Path, config: RunConfig, sets: tuple[str, ...], table: Path, num_samples: int) -> Results:
    from dnapretrain.adapt.backbones.attention import attention_shares, draw_heat_maps, write_table
    from dnapretrain.adapt.backbones.folder import as_hf_folder
    from dnapretrain.adapt.backbones.heldout_hf import device_of
    from dnapretrain.data.sampling.run_data import open_data

    streams = open_data(config).held_out_sets(sets)
    with as_hf_folder(model) as directory:
        found = attention_shares(directory, config, streams, device_of(config), num_samples)
    table.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, found)
    draw_heat_maps(table.with_suffix(".png"), found, f"{model}: attention by class (even attention would give)")
    return {name: {"attention": shares.summary()} for name, shares in found.items()}


def _baselines(job: _Job, sets: tuple[str, ...], fit: Path | None, fit_bases: int, max_samples: int | None) -> Results:
    from dnapretrain.data.sampling.run_data import open_data
    from dnapretrain.data.shards.shard import open_shard
    from dnapretrain.evaluate.baselines import set_baselines
    from dnapretrain.evaluate.counted import counted_text

    if fit is None and not job.knows_training:
        raise ConfigError("--baselines: this model's training data are not here to fit count models to. Give --fit-data PREFIX_OR_FASTA.")
    data = open_data(job.config)
    found = {}
    for name, stream in data.held_out_sets(sets).items():
        shard = open_shard(fit) if fit else None
        train = _documents(shard) if shard else data.train.segments()
        text = counted_text(stream, job.config.is_masked, max_samples)
        found[name] = {"baselines": set_baselines(stream, text, train, job.config.is_masked, fit_bases)}
    return found


def _documents(shard: Shard) -> Iterator[NDArray[np.uint8]]:
    for offset, length in zip(shard.offsets.tolist(), shard.lengths.tolist(), strict=True):
        yield shard.bases[offset : offset + length]


def _add(results: Results, more: Results) -> None:
    for name, values in more.items():
        results.setdefault(name, {}).update(values)


def _lines(results: Results) -> Iterator[str]:
    """What is printed without --json."""
    from dnapretrain.evaluate.probes import result_lines
    from dnapretrain.evaluate.regions import region_lines

    for name, result in results.items():
        if name == PROBES:
            yield PROBES
            yield from result_lines(result)
            continue
        marginal = result["marginal_bits_per_base"]
        by_marginals = "" if marginal is None else f" ({marginal:.4f} by base marginals)"
        bits = f"{result['bits_per_base']:.4f} bits per base{by_marginals}"
        counted = f"over {result['num_targets']:,} tokens of {result['num_bases']:,} bases"
        yield f"{name}: loss {result['loss']:.4f}, {bits}, accuracy {result['accuracy']:.4f} {counted}"
        yield from region_lines(result.get("regions"))
        if "attention" in result:
            yield from _attention_lines(result["attention"], (result.get("regions") or {}).get("class", {}))
        if "baselines" in result:
            yield from _baseline_lines(result["baselines"])
        if "recovery" in result:
            found = result["recovery"]
            kmers = "" if found["next_kmer_accuracy"] is None else f", the next 6 all right after {found['next_kmer_accuracy']:.4f}"
            left_out = f", {found['left_out']} samples left out" if found["left_out"] else ""
            yield (
                f"  recovered {found['base_accuracy']:.4f} of the next {found['num_bases']} bases{kmers} of {found['num_prompts']} prompts "
                f"of {found['prompt_bases']:,} bases{left_out}"
            )


def _attention_lines(found: dict[str, Any], classes: dict[str, dict[str, float]]) -> Iterator[str]:
    """Perplexity of each class, and the head that looks at it most."""
    yield f"  attention by class, {found['num_samples']} samples:"
    width = max(map(len, found["elements"]))
    for name, element in found["elements"].items():
        most = element["most"]
        perplexity = f"perplexity {classes[name]['perplexity']:.4f} per base, " if name in classes else ""
        yield (
            f"  {name:>{width}} | {perplexity}{element['expected']:.1%} of even attention, "
            f"up to {most['enrichment']:.2f} times as much attention (layer {most['layer']}, head {most['head']})"
        )


def _baseline_lines(found: dict[str, Any]) -> Iterator[str]:
    fitted = f"{found['fitted_bases']:,} of {found['training_bases']:,} training bases, both strands"
    yield f"  count models, bits per base of the same targets, fitted to {fitted}:"
    for kind, ladder in found["bits_per_base"].items():
        yield f"  {kind:>8}  " + "  ".join(f"{order} {bits:.4f}" for order, bits in ladder.items())
    yield f"      best  {found['best']}: {found['best_bits_per_base']:.4f}"
