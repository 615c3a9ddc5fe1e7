"""The README.md of an exported folder: what the model is, what it was trained on, how to use it."""

from __future__ import annotations

from typing import Any

from dnapretrain.config import RunConfig
from dnapretrain.convert.table import Family
from dnapretrain.data.tokens.tokenizers import Tokenizer

CARD = """---
library_name: transformers
pipeline_tag: {task}
tags:
- dna
- genomics
- dnapretrain
---

# DNA language model

{kind} with {parameters:,} parameters, trained on DNA {objective} with dnapretrain {dnapretrain}.

| | |
|---|---|
| architecture | {layers} layers, hidden {hidden}, {heads} heads ({groups} key/value), feed-forward {ffn} |
| tokenizer | {tokenizer} |
| context | {context:,} tokens = {context_bases:,} bases |
| step | {step} |
| training samples seen | {samples} |
| training sources | {sources} |
| data digest | {digest} |
| exported from | `{checkpoint}` ({weights}), as {dtype} |

```python
{example}
```

Input is upper-case A, C, G, T. {code}The data digest names the exact training bases and sample order: a run on
the same shards with the same seed prints the same one.
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


def model_card(config: RunConfig, tokenizer: Tokenizer, family: Family, report: dict[str, Any]) -> str:
    """Markdown text with a metadata block; `report` is that of the export."""
    model, masking = config.model, config.data.masking
    kind, objective, example = "A Llama-style decoder", "to predict the next token", CAUSAL_EXAMPLE
    if config.is_masked:
        kind, objective, example = (
            f"{'A' if family.name.startswith('D') else 'An'} {family.name}-style encoder",
            f"to fill in {100 * masking.mlm_probability:g} % of its tokens",
            MASKED_EXAMPLE,
        )
    reads = "byte-pair tokens" if tokenizer.kind == "bpe" else "single bases" if tokenizer.k == 1 else f"{tokenizer.k}-mers"
    main, plain = report["from_main_weights"], report["from_model_weights"]
    weights = (
        "fp32 main weights" if not plain else "weights as trained" if not main else f"{main} fp32 main weights, {plain} weights as trained"
    )
    samples = report["consumed_samples"]
    return CARD.format(
        task=family.task,
        kind=kind,
        objective=objective,
        example=example.format(
            dna="ACGT" * max(3, tokenizer.bases_per_token),
            mask=tokenizer.vocabulary.roles["mask_token"],
            trust=", trust_remote_code=True" if family.shipped else "",
        ),
        code=f"The model's code is in this folder ({', '.join(family.shipped)}). " if family.shipped else "",
        parameters=report["parameters"],
        dnapretrain=report["dnapretrain"],
        layers=model.num_layers,
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        groups=model.query_groups,
        ffn=model.ffn_hidden_size,
        tokenizer=f"{reads}, {tokenizer.vocab_size} tokens",
        context=config.max_positions,
        context_bases=config.max_positions * tokenizer.bases_per_token,
        step="not recorded" if report["step"] is None else f"{report['step']:,}",
        samples="not recorded" if samples is None else f"{samples:,}",
        sources=", ".join(f"`{source.prefix.name}` (weight {source.weight:g})" for source in config.data.train),
        digest=f"`{report['data_digest']}`" if report["data_digest"] else "not recorded",
        checkpoint=report["checkpoint"],
        weights=weights,
        dtype=report["dtype"],
    )
