"""Fine-tuning: a pretrained model and a table of labelled sequences, over seeds and folds, to saved models and one result.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__
from dnapretrain.adapt.backbones.backbone import folder_encoder
from dnapretrain.adapt.backbones.controls import Controls
from dnapretrain.adapt.backbones.encoding import Counts, OnLong, SequenceEncoder
from dnapretrain.adapt.backbones.folder import as_hf_folder, check_decoder, is_hf_folder
from dnapretrain.adapt.embedding.embedding_cache import folder_digest
from dnapretrain.adapt.extras import need
from dnapretrain.adapt.metrics import plain, with_intervals
from dnapretrain.adapt.sequences.splits import Split, leakage, leakage_lines, make_splits, table_digest
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import DEFAULT_METRIC, Target
from dnapretrain.adapt.training.causal import CausalLoop, causal_rows, load_causal, save_causal
from dnapretrain.adapt.training.classifier_loop import ClassifierLoop, LoopSettings
from dnapretrain.adapt.training.heads import METHODS, Adapter, load_classifier, parameter_counts, prepare, save_classifier
from dnapretrain.adapt.training.task_data import TaskRows, encode_rows
from dnapretrain.convert.families import family_of_folder
from dnapretrain.convert.folders import read_hf_config
from dnapretrain.errors import ConfigError

RESULT = "result.json"
BASE_DIR = "base"
LEARNING_RATES = {"full": 3e-5, "lora": 1e-4, "ia3": 3e-3, "head": 1e-3}
"""Where none is named: those of DNABERT-2's scripts (full, LoRA) and of Nucleotide Transformer (IA3)."""
KEEP = ("all", "none")
Say = Callable[[str], None]


@dataclass(frozen=True)
class FinetuneSettings:
    """All that a result depends on, beside model and tables."""

    task: str = "classification"
    method: str = "full"
    loop: LoopSettings = field(default_factory=LoopSettings)
    adapter: Adapter = field(default_factory=Adapter)
    """Of LoRA."""
    seeds: tuple[int, ...] = (1,)
    num_folds: int = 0
    valid_fraction: float = 0.1
    split_seed: int = 0
    """Of folds and of validation rows: the same for all seeds."""
    from_scratch: bool = False
    """The same architecture from random weights."""
    on_long: OnLong = "error"
    max_tokens: int | None = None
    device: str = "cpu"
    keep: str = "all"
    num_bootstrap: int = 1000
    condition_bins: int = 0
    """Of causal: cut the condition's numbers into so many; 0: each value is a condition."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be."""
        self.loop.check(self.task)
        if self.method not in METHODS:
            raise ConfigError(f"method = {self.method} is none of {', '.join(METHODS)}.")
        if self.from_scratch and self.method != "full":
            raise ConfigError(f"method = {self.method} leaves the body as it is, which --from-scratch draws at random. Use --method full.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {self.seeds}: name each once, and one at least.")
        if self.num_folds == 1 or self.num_folds < 0:
            raise ConfigError(f"folds = {self.num_folds} makes no folds. Use 2 or more, or 0.")
        if self.keep not in KEEP:
            raise ConfigError(f"keep = {self.keep} is none of {', '.join(KEEP)}.")
        if self.loop.class_weights and self.task in ("regression", "causal"):
            what = "numbers" if self.task == "regression" else "causal fine-tuning"
            raise ConfigError(f"class weights have no meaning for {what}. Leave --class-weights out.")
        if self.task == "causal" and self.method == "head":
            raise ConfigError("method = head learns a new head, and causal fine-tuning has none. Use full, lora or ia3.")
        if self.condition_bins and self.task != "causal":
            raise ConfigError(f"condition_bins = {self.condition_bins} is for --task causal, not {self.task}. Leave it out.")


def learning_rate(method: str) -> float:
    """The default of a method. Raises ConfigError for an unknown one."""
    if method not in LEARNING_RATES:
        raise ConfigError(f"method = {method} is none of {', '.join(METHODS)}.")
    return LEARNING_RATES[method]


def run_finetune(
    model: str | Path,
    train: SequenceTable,
    valid: SequenceTable | None,
    test: SequenceTable | None,
    output: Path,
    settings: FinetuneSettings | None = None,
    say: Say = lambda line: None,
    shared: dict[str, dict[str, int]] | None = None,
    folds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Fine-tune, write `output`/result.json and the models of all seeds and folds; returns what the JSON holds.

    shared: what `splits.leakage` counted of these tables, where that is known already. folds: of `settings.num_folds` these alone.
    Raises ConfigError and DataError, before anything is trained where that is possible.
    """
    settings = settings or FinetuneSettings()
    settings.check()
    if (output / RESULT).exists():
        raise ConfigError(f"{output / RESULT} is there already. Choose another --output, or remove it.")
    if settings.method in ("lora", "ia3"):
        need("peft", f"{settings.method} fine-tuning")
    target = Target.of(train, settings.task)
    controls = Controls()
    if target.task == "causal":
        check_decoder(Path(model))
        if target.columns:
            controls = Controls.of(target.columns[0], train.labels[target.columns[0]], settings.condition_bins, train.source)
    tables = {name: table for name, table in (("train", train), ("valid", valid), ("test", test)) if table is not None}
    classes = target.classes_for_folds(target.truth(train))
    splits = make_splits(
        train, valid is not None, test is not None, settings.num_folds, settings.valid_fraction, settings.split_seed, classes
    )
    splits = [split for split in splits if folds is None or split.fold in folds]
    shared = leakage(tables) if shared is None else shared
    output.mkdir(parents=True, exist_ok=True)
    with as_hf_folder(model, say) as folder:
        folder = _staying(folder, model, output, settings)
        encoder = classifier_encoder(folder, settings.on_long, settings.max_tokens)
        controls = replace(controls, learned_end=encoder.tokenizer.eos_id is not None)
        rows = {
            name: causal_rows(table, encoder, controls) if target.task == "causal" else encode_rows(table, target, encoder)
            for name, table in tables.items()
        }
        notes = [*encoder.counts.lines(), *leakage_lines(shared)]
        for note in notes:
            say(note)
        runs = [
            _one_run(folder, target, encoder, rows, split, seed, output, settings, say, controls)
            for split in splits
            for seed in settings.seeds
        ]
        digest = folder_digest(folder)
    found = {
        "dnapretrain": __version__,
        "model": str(model),
        "model_digest": digest,
        "settings": asdict(settings),
        "target": target.to_dict(),
        **({"conditions": vars(controls)} if target.task == "causal" else {}),
        "tables": {name: {"source": one.source, "rows": len(one), "digest": table_digest(one)} for name, one in tables.items()},
        "leakage": shared,
        "notes": notes,
        "runs": runs,
        "summary": summarise(runs),
    }
    (output / RESULT).write_text(json.dumps(plain(found), indent=1) + "\n")
    return found


def _staying(folder: Path, model: str | Path, output: Path, settings: FinetuneSettings) -> Path:
    """The folder; of a run or checkpoint that an adapter refers to, a copy that stays: `output`/base."""
    if is_hf_folder(model) or settings.method not in ("lora", "ia3") or settings.keep == "none" or settings.task == "causal":
        return folder
    import shutil

    shutil.copytree(folder, output / BASE_DIR, dirs_exist_ok=True)
    return output / BASE_DIR


def classifier_encoder(folder: Path, on_long: OnLong = "error", max_tokens: int | None = None) -> SequenceEncoder:
    """What makes tokens for a classifier of a folder, pretrained or saved by us. Raises ConfigError, CheckpointError."""
    family = family_of_folder(read_hf_config(folder))
    return replace(folder_encoder(folder, on_long, max_tokens), is_encoder=family.task != "text-generation", counts=Counts())


def open_loop(
    folder: Path, target: Target, encoder: SequenceEncoder, seed: int, settings: FinetuneSettings
) -> tuple[ClassifierLoop, dict[str, int]]:
    """A model ready to learn, and how many weights of it do."""
    family = family_of_folder(read_hf_config(folder))
    if target.task == "causal":
        model = prepare(
            load_causal(folder, seed, settings.from_scratch, settings.device), family, target, settings.method, settings.adapter
        )
        return CausalLoop(model, encoder, target, settings.loop, settings.device, seed), parameter_counts(model)
    model = load_classifier(folder, target, seed, settings.from_scratch, settings.device)
    if model.config.pad_token_id is None:  # decoders find their last token by it
        model.config.pad_token_id = encoder.tokenizer.pad_id
    model = prepare(model, family, target, settings.method, settings.adapter)
    return ClassifierLoop(model, encoder, target, settings.loop, settings.device, seed), parameter_counts(model)


def _one_run(
    folder: Path,
    target: Target,
    encoder: SequenceEncoder,
    rows: dict[str, TaskRows],
    split: Split,
    seed: int,
    output: Path,
    settings: FinetuneSettings,
    say: Say,
    controls: Controls,
) -> dict[str, Any]:
    """One seed of one split."""
    name = f"seed_{seed}" + ("" if split.fold is None else f"_fold_{split.fold}")
    train = rows["train"].select(split.train)
    valid = rows["valid"] if split.valid is None else rows["train"].select(split.valid)
    test = rows.get("test") if split.test is None else rows["train"].select(split.test)
    loop, counts = open_loop(folder, target, encoder, seed, settings)
    learned = loop.fit(train, valid, lambda line: say(f"{name}: {line}"))
    run: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "fold": split.fold,
        "rows": {"train": len(train), "valid": len(valid), "test": len(test) if test else 0},
        **counts,
        **asdict(learned),
        "valid": loop.evaluate(valid),
    }
    if test:
        intervals = scores_with_intervals(target, test.truth, loop.predict(test), settings.num_bootstrap)
        run["test"] = intervals
    if loop.scale is not None:
        run["scale"] = {"mean": loop.scale.mean.tolist(), "deviation": loop.scale.deviation.tolist()}
    if settings.keep == "all" and target.task == "causal":
        save_causal(loop.model, folder, output / name, settings.method, controls, encoder)
    elif settings.keep == "all":
        save_classifier(loop.model, folder, output / name, settings.method)
    return run


def scores_with_intervals(
    target: Target, truth: Sequence[NDArray[Any]], predicted: Sequence[NDArray[Any]], num_bootstrap: int = 1000
) -> dict[str, dict[str, float]]:
    """Each metric with a bootstrap interval over the sequences (of tokens, their bases stay together)."""

    def score(picked: NDArray[np.int64]) -> dict[str, float]:
        return target.scores([truth[row] for row in picked], [predicted[row] for row in picked])

    found = with_intervals(score, np.arange(len(truth)), num_bootstrap=num_bootstrap)
    return {name: asdict(interval) for name, interval in found.items()}


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Of validation and test, each metric's mean over runs, standard deviation, and the 95 % interval of the mean by Student's t.

    Runs of one test table differ by seed (and fold) alone: the interval says nothing of other test rows; that of each run does.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for part in ("valid", "test"):
        if not all(part in run for run in runs):
            continue
        values = {name: [run[part][name] for run in runs] for name in runs[0][part]}
        if part == "test":
            values = {name: [one["value"] for one in each] for name, each in values.items()}
        found[part] = {name: mean_interval(each) for name, each in values.items()}
    return found


def mean_interval(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """`mean`, `sd`, `low`, `high`, `count`; of a single value no interval (NaN)."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"mean": mean, "sd": math.nan, "low": math.nan, "high": math.nan, "count": count}
    sd = float(np.std(values, ddof=1))
    half = float(need("scipy.stats", "an interval").t.ppf(0.5 + level / 2, count - 1)) * sd / math.sqrt(count)
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half, "count": count}


def format_finetune(found: dict[str, Any]) -> str:
    """The result for the terminal."""
    settings, metric = found["settings"], LoopSettings(**found["settings"]["loop"]).selected(found["settings"]["task"])
    first = found["runs"][0]
    share = first["trainable_parameters"] / first["parameters"]
    lines = [f"{settings['method']}: {first['trainable_parameters']:,} of {first['parameters']:,} weights learn ({share:.2%})"]
    lines.append(f"{'run':<16} {'best epoch':>10}  {'metric':<10} {'validation':<11} test [95 % over its rows]")
    metric = DEFAULT_METRIC[settings["task"]] if metric == "loss" else metric
    for run in found["runs"]:
        test = run.get("test", {}).get(metric)
        shown = f"{test['value']:.3f} [{test['low']:.3f}, {test['high']:.3f}]" if test else ""
        lines.append(f"{run['name']:<16} {run['best_epoch']:>10}  {metric:<10} {run['valid'][metric]:<11.3f} {shown}".rstrip())
    for part, metrics in found["summary"].items():
        if len(found["runs"]) > 1:
            one = metrics[metric]
            runs = f"mean of {one['count']} runs [95 % of the mean]"
            lines.append(f"{part}: {metric} {one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}], {runs}")
    return "\n".join(lines)
