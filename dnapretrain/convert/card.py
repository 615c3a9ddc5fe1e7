"""The README.md of an exported folder: what the model is, how to use it, how and on what it was trained, what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dnapretrain.config import RunConfig
from dnapretrain.convert.card_data import data_section
from dnapretrain.convert.card_run import RunRecord, curve_section, held_out_section, last_evaluations, recipe_section
from dnapretrain.convert.table import AdapterLayers, Family
from dnapretrain.data.tokens.tokenizers import Tokenizer

DATA_FILE = "training_data.json"
RUN_FILE = "run.yaml"
PICTURE_FILE = "loss.png"
FIRST_LINE = (
    "# Choose a license for these weights before you publish them: write its identifier in place of `unknown`, and in section License.\n"
)
CARD = """---
{license_hint}{metadata}---

# {name}

{kind} with {parameters:,} parameters, {objective}dnapretrain {dnapretrain}.

| | |
|---|---|
| architecture | {layers} layers, hidden {hidden}, {heads} heads ({groups} key/value), feed-forward {ffn} |
| tokenizer | {tokenizer} |
| context | {context} |
| step | {step} |
| training samples seen | {samples} |
| training tokens seen | {tokens} |
| training bases seen | {bases} |
| training sources | {sources} |
| data digest | {digest} |
| exported from | `{checkpoint}` ({weights}), as {dtype} |

## How to use it

```python
{example}
```

{code}Fine-tune it with `transformers` ({heads_of_tasks}).

## Adapters

{adapters}
{training}
## Limits

{limits}

## License

> **To be filled in by who publishes the weights.** dnapretrain chooses none: it is up to you and to the terms of the training data.
"""
TRAINING = """
## Training

{recipe}
{settings}
### Training curve

{curve}
## Held-out results

{held_out}
## Training data

{data}"""
IMPORTED = """
## Training

Imported from `{source}` and not trained further by dnapretrain: how and on what it was trained is told there, not here.
"""

CAUSAL_EXAMPLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
logits = model(**tokenizer("{dna}", return_tensors="pt")).logits"""

MASKED_EXAMPLE = """from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

model = AutoModelForMaskedLM.from_pretrained("."{trust})
tokenizer = AutoTokenizer.from_pretrained(".")
logits = model(**tokenizer("{dna}", return_tensors="pt")).logits
fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
fill("{dna}{mask}{dna}")"""


@dataclass(frozen=True)
class CardFacts:
    """What the card is filled from, beside the settings."""

    report: dict[str, Any]
    """Of the export."""
    state: dict[str, Any]
    """state.json of the checkpoint."""
    record: RunRecord
    data: dict[str, Any]
    """As `training_data` found it."""
    picture: str | None
    """File of the curve, where it was drawn."""
    settings: str | None
    """File of the run's settings, where it was copied."""

    @property
    def was_trained(self) -> bool:
        """False for a checkpoint as it was imported."""
        return not ("imported_from" in self.state and not self.state.get("step"))


def model_card(config: RunConfig, tokenizer: Tokenizer, family: Family, facts: CardFacts) -> str:
    """Markdown text with a metadata block."""
    model, report = config.model, facts.report
    kind, objective, example = "A Llama-style decoder", "trained on DNA to predict the next token with ", CAUSAL_EXAMPLE
    if config.is_masked:
        article = "A" if family.name.startswith("D") else "An"
        kind, example = f"{article} {family.name}-style encoder", MASKED_EXAMPLE
        objective = f"trained on DNA to fill in {100 * config.data.masking.mlm_probability:g} % of its tokens with "
    sources = ", ".join(f"`{source.prefix.name}` (weight {source.weight:g})" for source in config.data.train)
    if not facts.was_trained:  # its settings are placeholders
        objective, sources = "weights from elsewhere, converted by ", "not recorded"
    dna = "ACGT" * max(3, tokenizer.bases_per_token)
    trust = ", trust_remote_code=True" if family.shipped else ""
    name = config.train.run_dir.name or "DNA language model"
    return CARD.format(
        license_hint=FIRST_LINE,
        metadata=yaml.safe_dump(_metadata(config, family, facts, name), sort_keys=False, allow_unicode=True),
        name=name,
        kind=kind,
        objective=objective,
        example=example.format(dna=dna, mask=tokenizer.vocabulary.roles["mask_token"], trust=trust),
        code=f"The model's code is in this folder ({', '.join(family.shipped)}). " if family.shipped else "",
        heads_of_tasks=_tasks(family),
        adapters=_adapters(family.adapter_layers),
        training=_training(config, facts),
        limits=_limits(config, tokenizer, facts.was_trained),
        layers=model.num_layers,
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        groups=model.query_groups,
        ffn=model.ffn_hidden_size,
        tokenizer=_tokenizer(tokenizer),
        context=_context(config, tokenizer),
        tokens=_count(report["consumed_tokens"]),
        bases=_bases(facts.record, tokenizer),
        step=_count(report["step"]),
        samples=_count(report["consumed_samples"]),
        sources=sources,
        digest=f"`{report['data_digest']}`" if report["data_digest"] else "not recorded",
        weights=_weights(report),
        **{key: report[key] for key in ("parameters", "dnapretrain", "dtype")},
        checkpoint=Path(report["checkpoint"]).name,
    )


def _metadata(config: RunConfig, family: Family, facts: CardFacts, name: str) -> dict[str, Any]:
    """The front matter that the Hugging Face hub reads; held-out results as it wants them (`model-index`)."""
    metadata: dict[str, Any] = {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": family.task,
        "tags": ["dna", "genomics", "biology", "dnapretrain", "megatron-core"],
    }
    metric = "bits per masked base" if config.is_masked else "bits per base"
    results = [
        {
            "task": {"type": family.task},
            "dataset": {"name": f"held-out set {dataset}", "type": dataset},
            "metrics": [{"type": metric.replace(" ", "_"), "name": metric, "value": round(found["bits_per_base"], 6)}],
        }
        for dataset, found in last_evaluations(facts.record).items()
        if found.get("bits_per_base") is not None
    ]
    return {**metadata, "model-index": [{"name": name, "results": results}]} if results else metadata


def _training(config: RunConfig, facts: CardFacts) -> str:
    if not facts.was_trained:
        return IMPORTED.format(source=Path(facts.state["imported_from"]).name)
    if not facts.state.get("step"):
        return "\n## Training\n\nNot trained: step 0.\n"
    return TRAINING.format(
        recipe=recipe_section(config, facts.record, facts.state),
        settings=f"All settings: [`{facts.settings}`]({facts.settings}).\n" if facts.settings else "",
        curve=curve_section(config, facts.record, facts.picture),
        held_out=held_out_section(config, facts.record),
        data=data_section(facts.data, DATA_FILE),
    )


def _tokenizer(tokenizer: Tokenizer) -> str:
    reads = "byte-pair tokens" if tokenizer.kind == "bpe" else "single bases" if tokenizer.k == 1 else f"{tokenizer.k}-mers"
    published = "" if tokenizer.kind in ("nucleotide", "kmer", "bpe") else f", ids of {tokenizer.kind}"
    return f"{reads}, {tokenizer.vocab_size} tokens{published}"


def _context(config: RunConfig, tokenizer: Tokenizer) -> str:
    special = config.tokenizer.add_bos + config.tokenizer.add_eos
    tokens = f"{config.max_positions:,} tokens"
    if tokenizer.kind == "bpe":
        return tokens
    around = f", {special} of them special," if special else ""
    return f"{tokens}{around} = {(config.max_positions - special) * tokenizer.bases_per_token:,} bases"


def _bases(record: RunRecord, tokenizer: Tokenizer) -> str:
    if not record.history or record.consumed_bases is None:
        return "not recorded"
    if tokenizer.kind == "bpe":
        return f"about {record.consumed_bases:,} (tokens x {tokenizer.k}, a setting; special tokens counted as others)"
    return f"at most {record.consumed_bases:,} (tokens x {tokenizer.k}, special tokens and single letters counted as others)"


def _weights(report: dict[str, Any]) -> str:
    main, plain = report["from_main_weights"], report["from_model_weights"]
    return (
        "fp32 main weights" if not plain else "weights as trained" if not main else f"{main} fp32 main weights, {plain} weights as trained"
    )


def _tasks(family: Family) -> str:
    names = ["ForCausalLM" if family.task == "text-generation" else "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"]
    trust = "; `trust_remote_code=True` each time" if family.shipped else ""
    return f"{', '.join(f'`AutoModel{name}`' for name in names)}{trust}"


def _adapters(layers: AdapterLayers) -> str:
    ia3 = (("target_modules", layers.ia3), ("feedforward_modules", layers.ia3_feedforward))
    lines = [
        "With [peft](https://github.com/huggingface/peft), name the layers:",
        "",
        "```python",
        f'LoraConfig(task_type="SEQ_CLS", target_modules={list(layers.lora)})',
        'IA3Config(task_type="SEQ_CLS", ' + ", ".join(f'{key}=r"{layers.pattern(names)}"' for key, names in ia3) + ")",
        "```",
        "",
        '`task_type`: "SEQ_CLS" or "TOKEN_CLS" for classifiers, whose new head is then trained and saved; none for the model itself.',
    ]
    if layers.new_in_classifiers:
        lines += [
            "",
            f'For a sequence classifier (`task_type="SEQ_CLS"`) add `modules_to_save={list(layers.new_in_classifiers)}`: that part '
            "begins at random, and an adapter saved without it is worthless.",
        ]
    return "\n".join(lines)


def _limits(config: RunConfig, tokenizer: Tokenizer, was_trained: bool) -> str:
    text = "ACGTTGACNNRYacgttgac"
    read = " ".join(f"`{tokenizer.tokens[token]}`" for token in tokenizer.encode(text).tolist())
    longest, model = config.data.longest_length, config.model
    context = {
        "learned_absolute": "Longer input fails: the table of positions ends there.",
        "alibi": "Longer input runs; positions are relative.",
        "rope": "Longer input runs, at positions that the model does not know.",
        "none": "Longer input runs.",
    }[model.position_embedding_type]
    case = "Lower-case a, c, g, t are" if tokenizer.kind == "bpe" else "Lower-case letters are"
    strands = (
        "Both strands were read in training."
        if config.data.reverse_complement > 0
        else "One strand of each sequence was read in training: the reverse complement of an input may score otherwise."
    )
    lines = [
        f"Context: {config.max_positions:,} tokens{f'; samples in training had at most {longest:,}' if was_trained else ''}. {context}",
        f"Letters: `{text}` is read as {read}. {case} read as upper case by the tokenizer here.",
        *([strands] if was_trained else []),
        "It knows what its training data hold. What is not among the results above was not measured.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _count(value: int | None) -> str:
    return "not recorded" if value is None else f"{value:,}"
