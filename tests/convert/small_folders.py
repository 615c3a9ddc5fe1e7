"""A small exported folder of each published family, those of stock transformers classes too."""

from pathlib import Path

import torch
from families import GENERATOR, NT_V1, SMALL, random_native, run_config, sizes, tokenizer_of, write_small
from reference import write_random

from dnapretrain.convert.hf import to_hf
from dnapretrain.convert.native_writer import write_native
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer

FAMILIES = ("generator", "nt-v1", *SMALL)


def write_folder(parent: Path, name: str) -> tuple[Path, Tokenizer]:
    """`parent`/native and the folder exported from it, random weights; the folder and its tokenizer."""
    native = parent / "native"
    if name == "generator":
        config = run_config({"kind": "generator"}, {**GENERATOR, **sizes(2, 32, 8, 40)})
        write_random(native, config)
        tokenizer = build_tokenizer(config.tokenizer)
    elif name == "nt-v1":
        config, tokenizer = run_config({"kind": "nt_v1"}, {**NT_V1, **sizes(2, 24, 4, 40)}), tokenizer_of("nt_v1")
        write_native(native, config, tokenizer, random_native(config, tokenizer).items())
    else:
        _, tokenizer, _ = write_small(native, name, parent)
    to_hf(native, parent / "hf")
    return parent / "hf", tokenizer


def load(folder: Path, task: str, seed: int = 0, **settings):
    """The folder as AutoModelFor`task`, for MaskedLM of a decoder as what it is; not training. `seed` is that of weights it has not."""
    import transformers

    if task == "MaskedLM" and "LlamaFor" in (folder / "config.json").read_text():
        task = "CausalLM"
    torch.manual_seed(seed)
    return getattr(transformers, f"AutoModelFor{task}").from_pretrained(str(folder), trust_remote_code=True, **settings).eval()


def batch(tokenizer: Tokenizer, lengths: tuple[int, ...] = (40, 29, 33)) -> dict[str, torch.Tensor]:
    """Token ids of any kind but <pad>, padded on the right, and their mask."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, tokenizer.vocab_size, (length,), generator=generator) for length in lengths]
    mask = torch.stack([(torch.arange(max(lengths)) < length).long() for length in lengths])
    tokens = torch.full(mask.shape, tokenizer.pad_id)
    for number, row in enumerate(rows):
        row[row == tokenizer.pad_id] = tokenizer.unk_id
        tokens[number, : len(row)] = row
    return {"input_ids": tokens, "attention_mask": mask}
