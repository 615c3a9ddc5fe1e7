"""Settings from files: recipes, YAML, dotted overrides.

`load_config` reads a recipe or a file, lays it over the recipe that it names, applies `section.key=value` overrides, refuses
unknown keys (naming the nearest known one) and checks every rule that spans two settings.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from dnapretrain.config import RunConfig, Section
from dnapretrain.config_rules import check_rules
from dnapretrain.errors import ConfigError

ALIASES = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
    "cp": "context_parallel_size",
}
"""Short names accepted in section `parallel`; the resolved tree prints the long ones."""

NAMES_ELSEWHERE = {
    "learning_rate": "optim.lr",
    "warmup_steps": "optim.lr_warmup_steps",
    "lr_warmup_iters": "optim.lr_warmup_steps",
    "lr_decay_iters": "optim.lr_decay_steps",
    "betas": "optim.adam_beta1",
    "max_grad_norm": "optim.clip_grad",
    "seq_length": "data.sequence_length",
    "max_length": "data.sequence_length",
    "data_path": "data.train",
    "batch_size": "train.global_batch_size",
    "max_steps": "train.train_steps",
    "train_iters": "train.train_steps",
    "eval_iters": "train.eval_samples",
    "output_dir": "train.run_dir",
    "save": "train.run_dir",
    "bf16": "train.precision",
    "num_hidden_layers": "model.num_layers",
    "num_key_value_heads": "model.num_query_groups",
    "intermediate_size": "model.ffn_hidden_size",
    "head_dim": "model.kv_channels",
    "rope_theta": "model.rotary_base",
    "rope_parameters": "model.rope_scaling",
    "seq_len_interpolation_factor": "model.rope_scaling",
    "decoder_first_pipeline_num_layers": "parallel.num_layers_in_first_pipeline_stage",
    "decoder_last_pipeline_num_layers": "parallel.num_layers_in_last_pipeline_stage",
    "rms_norm_eps": "model.norm_epsilon",
    "tie_word_embeddings": "model.untie_embeddings_and_output_weights",
    "mask_prob": "data.masking.mlm_probability",
    "layer_norm_eps": "model.norm_epsilon",
    "hidden_act": "model.activation",
    "hidden_dropout_prob": "model.hidden_dropout",
    "attention_probs_dropout_prob": "model.attention_dropout",
    "emb_layer_norm_before": "model.embedding_norm",
    "add_qkv_bias": "model.attention_bias",
}
"""What Megatron-LM and Hugging Face call some settings: only to answer an unknown key with ours."""

RECIPES = Path(__file__).resolve().parent / "recipes"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one section, of which YAML would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; raises ConstructorError, a YAMLError, for a key that stands twice."""
        names: set[str] = set()
        for key, _ in node.value:
            if key.value in names:
                raise yaml.constructor.ConstructorError(problem=f"key '{key.value}' stands twice", problem_mark=key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a recipe by its name or a YAML file, apply overrides (`optim.lr=3e-4`, or a YAML file to lay over it) and validate.

    A file may begin with `recipe: NAME_OR_FILE` (a path counts from the file's own folder): its sections then change those of the
    recipe, key by key. Raises ConfigError for a missing or malformed file, unknown keys, and settings that do not fit.
    """
    return config_from_dict(read_settings_tree(str(source), overrides))


def read_settings_tree(source: str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What `load_config` makes a RunConfig of: sections as they are given, nothing checked. Without a source, the overrides alone."""
    tree = _read_tree(_find_recipe(source.removeprefix("recipe=")), ()) if source else {}
    for override in overrides:
        if override.endswith((".yaml", ".yml")) and "=" not in override:
            tree = _laid_over(tree, _read_tree(_find_recipe(override), ()))
        else:
            _apply_override(tree, override)
    return tree


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str) -> str:
    """The text of a recipe, with its sources and open points. Raises ConfigError for a name that is not known."""
    return _find_recipe(name).read_text()


def _find_recipe(name: str, folder: Path = Path()) -> Path:
    """The file that `name` means: a path, or else a recipe of the package. Raises ConfigError where there is neither."""
    path = folder / name
    if path.is_file():
        return path
    recipe = RECIPES / f"{name.replace('nucleotide-transformer-', 'nt-')}.yaml"
    if recipe.is_file() and recipe.parent == RECIPES:
        return recipe
    if path.exists():  # no file: reading it says so
        return path
    close = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.5)
    hint = f"Did you mean the recipe '{close[0]}'?" if close else f"Give a YAML file, or one of {', '.join(recipe_names())}."
    raise ConfigError(f"config file not found: {path}. {hint}")


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The sections of a file, laid over those of the recipe that it names."""
    if path.is_dir():
        run = path / "run.yaml"
        raise ConfigError(
            f"cannot read config file {path}: it is a folder. Give {f'its settings, {run}' if run.is_file() else 'a YAML file'}."
        )
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read config file {path}: {_one_line(error)}") from None
    if not isinstance(tree, dict):
        kind = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"config file {path} holds {kind}, not sections. See examples/quickstart/gpt.yaml.")
    tree = _expand_aliases(tree)
    if "recipe" not in tree:
        return tree
    if path.resolve() in seen:
        raise ConfigError(f"config file {path} names itself as its recipe, through {len(seen)} file(s). Remove one `recipe:`.")
    below = _find_recipe(str(tree.pop("recipe")), path.parent)
    return _laid_over(_read_tree(below, (*seen, path.resolve())), tree)


def _laid_over(below: dict[str, Any], above: dict[str, Any], section: type[Section] = RunConfig) -> dict[str, Any]:
    """`above`, and what only `below` has; sections key by key, all else as a whole (`data.valid`, so that {} leaves no set)."""
    both = {}
    for key in above.keys() & below.keys() & section.model_fields.keys():
        child = _child_section(section.model_fields[key].annotation)
        if child and isinstance(above[key], dict) and isinstance(below[key], dict):
            both[key] = _laid_over(below[key], above[key], child)
    return {**below, **above, **both}


def config_from_dict(tree: dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Build and validate the tree from plain values (as saved with runs and checkpoints), `section.key=value` laid over them."""
    tree = copy.deepcopy(tree) if overrides else tree
    for override in overrides:
        _apply_override(tree, override)
    tree = _expand_aliases(tree)
    for key, known in _unknown_keys(tree, RunConfig, "", config_keys()):
        raise ConfigError(f"unknown config key '{key}'. {_nearest(key, known)}")
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}{_got(e)}" for e in error.errors()]
        raise ConfigError("; ".join(problems)) from None
    check_rules(config)
    return config


def dump_config(config: RunConfig) -> str:
    """The resolved tree as YAML; `load_config` reads it back to an equal tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def config_keys(section: type[Section] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the tree, in order."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        child = _child_section(field.annotation)
        keys += config_keys(child, f"{prefix}{name}.") if child else [prefix + name]
    return keys


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override '{override}' is neither section.key=value nor a YAML file.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"value of override '{override}' is not YAML: {_one_line(error)}") from None
    node = tree
    *parents, leaf = key.split(".")
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a section. Replace it as a whole.")
        node = child
    if len(parents) == 1 and parents[0] == "parallel":
        leaf = ALIASES.get(leaf, leaf)
    node[leaf] = value


def _expand_aliases(tree: dict[str, Any]) -> dict[str, Any]:
    parallel = tree.get("parallel")
    if not isinstance(parallel, dict):
        return tree
    expanded: dict[str, Any] = {}
    for name, value in parallel.items():
        key = str(ALIASES.get(name, name))
        if key in expanded:
            raise ConfigError(f"parallel.{key} is given twice, once by its short name.")
        expanded[key] = value
    return {**tree, "parallel": expanded}


def _child_section(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _unknown_keys(tree: Any, section: type[Section], prefix: str, known: list[str]) -> Iterator[tuple[str, list[str]]]:
    if not isinstance(tree, dict):
        return
    for name, value in tree.items():
        field, path = section.model_fields.get(name), f"{prefix}{name}"
        if field is None:
            yield path, known
        elif child := _child_section(field.annotation):
            yield from _unknown_keys(value, child, f"{path}.", known)
        elif item := next(filter(None, map(_child_section, get_args(field.annotation))), None):
            by_name = isinstance(value, dict) and get_origin(field.annotation) is dict
            entries = value.items() if by_name else [("", entry) for entry in (value if isinstance(value, list) else [value])]
            for name, entry in entries:
                place = f"{path}.{name}." if by_name else f"{path}."
                yield from _unknown_keys(entry, item, place, config_keys(item, place))


def _nearest(key: str, known: Iterable[str]) -> str:
    names = list(known)
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in names if name.rpartition(".")[2] == leaf]
    elsewhere = [NAMES_ELSEWHERE[leaf]] if leaf in NAMES_ELSEWHERE else []
    close = same_leaf or elsewhere or difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if not close:
        leaves = {name.rpartition(".")[2]: name for name in names}
        close = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    return f"Did you mean '{close[0]}'?" if close else f"Known sections: {', '.join(RunConfig.model_fields)}."


def _got(error: Any) -> str:
    return "" if error["type"] == "missing" else f" (got {error['input']!r})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
