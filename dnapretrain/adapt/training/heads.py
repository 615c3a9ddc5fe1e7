"""Pretrained models with a new head: full fine-tuning, LoRA and IA3 of `peft`, or the head alone; saved so that others load them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnapretrain.adapt.backbones.folder import LOAD_ERRORS, check_device
from dnapretrain.adapt.extras import need
from dnapretrain.adapt.sequences.targets import Target
from dnapretrain.convert.families import family_of_folder
from dnapretrain.convert.folders import read_hf_config
from dnapretrain.convert.table import Family
from dnapretrain.errors import CheckpointError, ConfigError

METHODS = ("full", "lora", "ia3", "head")
PROBLEMS = {"classification": "single_label_classification", "multilabel": "multi_label_classification", "regression": "regression"}
HEADS = ("classifier", "score")
MODEL_DIR, ADAPTER_DIR = "model", "adapter"


@dataclass(frozen=True)
class Adapter:
    """Of LoRA."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05


def load_classifier(folder: Path, target: Target, seed: int, from_scratch: bool = False, device: str = "cpu") -> Any:
    """AutoModelForSequenceClassification, or ...TokenClassification, of a folder, fp32; what is new is drawn from `seed`.

    from_scratch: all of it. Raises ConfigError where the folder's code has no such class, or tensors of the body are missing.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification
    from transformers.utils import logging

    check_device(device)
    logging.disable_progress_bar()
    family = family_of_folder(read_hf_config(folder))
    auto: Any = AutoModelForTokenClassification if target.task == "tokens" else AutoModelForSequenceClassification
    code = {} if family.task == "text-generation" else {"trust_remote_code": True}
    about: dict[str, Any] = {
        "id2label": dict(enumerate(target.output_names)),
        "label2id": {x: i for i, x in enumerate(target.output_names)},
    }
    if target.task in PROBLEMS:
        about["problem_type"] = PROBLEMS[target.task]
    torch.manual_seed(seed)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is what we want, not news
    try:
        config = AutoConfig.from_pretrained(str(folder), **code, **about)
        if from_scratch:
            model = auto.from_config(config, **code)
        else:
            model, info = auto.from_pretrained(str(folder), config=config, output_loading_info=True, **code)
            _check_body(folder, family, info)
    except (*LOAD_ERRORS, AttributeError) as error:
        raise ConfigError(
            f"{folder} has no model for {target.task}: {' '.join(str(error).split())[:300]}. `convert from-hf` and `convert to-hf` write "
            "the same weights with code that has one."
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    return model.float().to(device)


def _check_body(folder: Path, family: Family, info: dict[str, Any]) -> None:
    """Raise ConfigError where weights of the pretrained part start at random."""
    new = (*HEADS, *family.adapter_layers.new_in_classifiers, "contact_head")
    missing = sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])})
    missing = [name for name in missing if not set(new).intersection(name.split("."))]
    if missing:
        raise ConfigError(f"{folder} has no tensor for {len(missing)} weights of its model, the first {missing[0]}. Fetch it again.")


def prepare(model: Any, family: Family, target: Target, method: str, adapter: Adapter | None = None) -> Any:
    """The model with what `method` trains: all of it, an adapter of peft and the head, or the head. The rest is frozen."""
    adapter = adapter or Adapter()
    layers = family.adapter_layers
    if method not in METHODS:
        raise ConfigError(f"method = {method} is none of {', '.join(METHODS)}.")
    new = list(layers.new_in_classifiers) if target.task not in ("tokens", "causal") else []
    if method == "full":
        return model
    if method == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(bool({*HEADS, *new}.intersection(name.split("."))))
        return model
    peft = need("peft", f"{method} fine-tuning")
    task_type = {"tokens": "TOKEN_CLS", "causal": "CAUSAL_LM"}.get(target.task, "SEQ_CLS")
    also: dict[str, Any] = {"task_type": task_type} | ({"modules_to_save": new} if new else {})
    if method == "lora":
        config = peft.LoraConfig(
            r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=list(layers.lora), **also
        )
    else:
        config = peft.IA3Config(
            target_modules=layers.pattern(layers.ia3), feedforward_modules=layers.pattern(layers.ia3_feedforward), **also
        )
    found = peft.get_peft_model(model, config)
    if method == "ia3":
        _keep_queries(found)
    return found


def _keep_queries(model: Any) -> None:
    """IA3 scales keys and values; where one matrix makes queries too (DNABERT-2's Wqkv), the first third of its vector stays one."""
    for name, parameter in model.named_parameters():
        if "Wqkv" in name and "ia3_l" in name:
            mask = torch.ones_like(parameter)
            mask[: len(mask) // 3] = 0
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Weights, and those that learn."""
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trainable_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
    }


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU, of the weights that learn."""
    return {name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters() if weight.requires_grad}


def restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `trainable_state` gave."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in state:
                weight.copy_(state[name])


def save_classifier(model: Any, base: Path, directory: Path, method: str) -> None:
    """`directory`/model (full, head), or `directory`/adapter, whose base is the folder `base`; the tokenizer's files beside."""
    adapter = method in ("lora", "ia3")
    place = directory / (ADAPTER_DIR if adapter else MODEL_DIR)
    if adapter:
        model.peft_config["default"].base_model_name_or_path = str(base.resolve())
    model.save_pretrained(str(place))
    for path in base.iterdir():
        tokenizer = path.name.startswith(("tokenizer", "special_tokens", "vocab"))
        if tokenizer or (path.suffix == ".py" and not adapter):
            shutil.copyfile(path, place / path.name)


def open_classifier(directory: Path, target: Target, method: str, device: str = "cpu") -> tuple[Any, Path]:
    """A saved model, ready to be asked, and the folder with its tokenizer. Raises CheckpointError where it, or its base, is not there."""
    place = directory / (MODEL_DIR if method in ("full", "head") else ADAPTER_DIR)
    if not place.is_dir():
        raise CheckpointError(f"{directory} holds no {place.name}/: the run kept none (--keep), or it did not end. Fine-tune again.")
    if method in ("full", "head"):
        return load_classifier(place, target, 0, device=device).eval(), place
    base = Path(json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"])
    if not (base / "config.json").is_file():
        raise CheckpointError(f"the adapter's base model is not at {base}. Put it there, or name it in {place / 'adapter_config.json'}.")
    peft = need("peft", "an adapter")
    model = load_classifier(base, target, 0, device=device)
    return peft.PeftModel.from_pretrained(model, str(place)).eval(), base
