"""The README.md of an exported folder: what the model is, what it was trained on, how to use it."""

from __future__ import annotations

from typing import Any

from dnapretrain.config import RunConfig
from dnapretrain.data.tokenizers import Tokenizer

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- dna
- genomics
- dnapretrain
---

# DNA language model

A Llama-style decoder with {parameters:,} parameters, trained on DNA with dnapretrain {dnapretrain}.

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
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
logits = model(**tokenizer("ACGTACGTACGT", return_tensors="pt")).logits
```

Input is upper-case A, C, G, T. The data digest names the exact training bases and sample order: a run on
the same shards with the same seed prints the same one.
"""


def model_card(config: RunConfig, tokenizer: Tokenizer, report: dict[str, Any]) -> str:
    """Markdown text with a metadata block; `report` is that of the export."""
    model = config.model
    kind = "single bases" if tokenizer.kind == "nucleotide" else f"{tokenizer.k}-mers"
    main, plain = report["from_main_weights"], report["from_model_weights"]
    weights = (
        "fp32 main weights" if not plain else "weights as trained" if not main else f"{main} fp32 main weights, {plain} weights as trained"
    )
    samples = report["consumed_samples"]
    return CARD.format(
        parameters=report["parameters"],
        dnapretrain=report["dnapretrain"],
        layers=model.num_layers,
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        groups=model.query_groups,
        ffn=model.ffn_hidden_size,
        tokenizer=f"{kind}, {tokenizer.vocab_size} tokens",
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
