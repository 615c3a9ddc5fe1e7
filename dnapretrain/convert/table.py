"""Conversion tables: which native tensor becomes which Hugging Face tensors, and how it is laid out.

A family is a list of entries; each entry is used in both directions, one tensor at a time, so a
model of any size converts in the memory of its largest tensor.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dnapretrain.config import ModelConfig
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import CheckpointError, ConfigError

Shape = tuple[int, ...]
NamedTensor = tuple[str, Tensor]


class Layout(Protocol):
    """How one native tensor is cut into Hugging Face tensors and put together again."""

    def split(self, native: Tensor) -> tuple[Tensor, ...]:
        """The Hugging Face tensors, in the order of the entry's names."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The native tensor."""


@dataclass(frozen=True)
class Same:
    """One tensor, the same in both worlds."""

    def split(self, native: Tensor) -> tuple[Tensor, ...]:
        """The tensor itself."""
        return (native,)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The tensor itself."""
        return parts[0]


@dataclass(frozen=True)
class PaddedRows:
    """A vocabulary matrix or bias: the native one has padding rows at its end, zero when imported."""

    rows: int
    padded_rows: int

    def split(self, native: Tensor) -> tuple[Tensor, ...]:
        """The real rows."""
        return (native[: self.rows],)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The real rows and zeros below them."""
        padding = parts[0].new_zeros((self.padded_rows - self.rows, *parts[0].shape[1:]))
        return torch.cat((parts[0], padding))


@dataclass(frozen=True)
class GroupedQKV:
    """Megatron's fused projection: for each query group the rows of its query heads, then its key, then its value."""

    heads: int
    groups: int
    head_dim: int

    def split(self, native: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value rows, heads in order."""
        grouped = native.unflatten(0, (self.groups, self.heads // self.groups + 2, self.head_dim))
        query, key, value = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
        return query.flatten(0, 2), key.flatten(0, 1), value.flatten(0, 1)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The fused rows."""
        query, key, value = parts
        per_group = (
            query.unflatten(0, (self.groups, self.heads // self.groups, self.head_dim)),
            key.unflatten(0, (self.groups, 1, self.head_dim)),
            value.unflatten(0, (self.groups, 1, self.head_dim)),
        )
        return torch.cat(per_group, dim=1).flatten(0, 2)


@dataclass(frozen=True)
class ConcatenatedQKV:
    """One Hugging Face tensor with all query rows, then all key rows, then all value rows; the native one is grouped by head."""

    grouped: GroupedQKV

    def split(self, native: Tensor) -> tuple[Tensor, ...]:
        """The concatenation."""
        return (torch.cat(self.grouped.split(native)),)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The fused rows, grouped."""
        queries, keys = self.grouped.heads * self.grouped.head_dim, self.grouped.groups * self.grouped.head_dim
        return self.grouped.join(parts[0].split((queries, keys, keys)))


@dataclass(frozen=True)
class StackedRows:
    """Equal blocks of rows below each other: [gate; up]."""

    blocks: int

    def split(self, native: Tensor) -> tuple[Tensor, ...]:
        """The blocks."""
        return native.chunk(self.blocks)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The stack."""
        return torch.cat(tuple(parts))


@dataclass(frozen=True)
class Entry:
    """One native tensor and the Hugging Face tensors that hold the same numbers."""

    native: str
    native_shape: Shape
    hf: tuple[tuple[str, Shape], ...]
    layout: Layout


@dataclass(frozen=True)
class AdapterLayers:
    """Linear layers that adapters of `peft` go to, by the ends of their names: its `target_modules`. All are in the network's layers,
    none in a head."""

    lora: tuple[str, ...]
    """All matrices of a layer."""
    ia3: tuple[str, ...]
    """Keys, values, and the last matrix of the feed-forward."""
    ia3_feedforward: tuple[str, ...]
    """Those of `ia3` whose input is scaled, not their output: `feedforward_modules`."""
    new_in_classifiers: tuple[str, ...] = ()
    """Modules that a sequence classifier begins with at random, beside `classifier` and `score`, which peft knows: it saves them with an
    adapter only where `modules_to_save` names them, and a loaded adapter is worthless without."""

    @staticmethod
    def pattern(names: tuple[str, ...]) -> str:
        """Of full module names that end so, as peft takes one: `output.dense` is that of the feed-forward, not attention's, which IA3
        leaves alone."""
        return rf".*\.(?<!attention\.)(?:{'|'.join(re.escape(name) for name in names)})"


@dataclass(frozen=True)
class Family:
    """A Hugging Face architecture that our checkpoints convert to and from."""

    name: str
    """What messages call it."""
    task: Literal["text-generation", "fill-mask"]
    """The pipeline of transformers that it is for."""
    entries: Callable[[ModelConfig, int, Tokenizer], list[Entry]]
    """(model, max_positions, tokenizer) -> the table; ConfigError names a setting that the architecture cannot express."""
    hf_config: Callable[[ModelConfig, int, Tokenizer], dict[str, Any]]
    """(model, max_positions, tokenizer) -> the content of config.json."""
    model_config: Callable[[dict[str, Any]], ModelConfig]
    """Content of config.json -> model section; ConfigError names a field we cannot express."""
    adapter_layers: AdapterLayers
    """peft has defaults for Llama alone: those of a model_type fit no code that comes with a folder."""
    token_ids: tuple[str, ...] = ()
    """Fields of config.json with ids that the network itself uses; the tokenizer must have the same."""
    extra: Callable[[ModelConfig, int, Tokenizer, torch.dtype], list[NamedTensor]] = lambda model, max_positions, tokenizer, dtype: []
    """(model, max_positions, tokenizer, dtype of the weights) -> tensors that its folders hold and the network never reads."""
    aliases: Callable[[ModelConfig], dict[str, str]] = lambda model: {}
    """Name of a second copy that its folders may hold -> name in the table; where a folder has it, the two are held to be equal."""
    writes_aliases: bool = False
    """Exported folders hold the copies too, as the published ones do."""
    shipped: tuple[str, ...] = ()
    """Files of convert/shipped that an exported folder needs: none where stock transformers has the class."""
    tokenizers: tuple[str, ...] = ()
    """Published kinds (TokenizerConfig.kind) that its models came with: for folders without any tokenizer file."""
    spellings: tuple[tuple[str, str], ...] = ()
    """(ending of a stored name, ending in the table) of names that transformers has written in two ways."""
    unread: str = ""
    """Pattern of the names that no native tensor holds: `extra` in all its spellings, and leftovers. A folder's own are kept beside
    the native weights, and written back."""

    def table_name(self, stored: str) -> str:
        """What the table calls the tensor that a folder calls `stored`."""
        for ending, ours in self.spellings:
            if stored.endswith(ending):
                return stored.removesuffix(ending) + ours
        return stored


def native_to_hf(entries: Sequence[Entry], read: Callable[[str], Tensor]) -> Iterator[NamedTensor]:
    """Yield (Hugging Face name, contiguous tensor) in table order; `read` returns a native tensor by name."""
    for entry in entries:
        native = read(entry.native)
        check_shapes("native", {entry.native: native.shape}, {entry.native: entry.native_shape})
        for (name, shape), part in zip(entry.hf, entry.layout.split(native), strict=True):
            check_shapes("Hugging Face", {name: part.shape}, {name: shape})
            yield name, part.contiguous()


def hf_to_native(entries: Sequence[Entry], read: Callable[[str], Tensor]) -> Iterator[NamedTensor]:
    """Yield (native name, contiguous tensor) in table order; `read` returns a Hugging Face tensor by name."""
    for entry in entries:
        parts = [read(name) for name, _ in entry.hf]
        for (name, shape), part in zip(entry.hf, parts, strict=True):
            check_shapes("Hugging Face", {name: part.shape}, {name: shape})
        native = entry.layout.join(parts)
        check_shapes("native", {entry.native: native.shape}, {entry.native: entry.native_shape})
        yield entry.native, native.contiguous()


def weight_and_bias(native: str, hf: str, *shape: int, bias: bool = True) -> list[Entry]:
    """A norm's or linear layer's tensors; `shape` is that of the weight, and the bias is as long as its first axis."""
    table = [Entry(f"{native}weight", shape, ((f"{hf}.weight", shape),), Same())]
    return [*table, Entry(f"{native}bias", shape[:1], ((f"{hf}.bias", shape[:1]),), Same())] if bias else table


def separate_qkv(model: ModelConfig, native: str, hf: str) -> list[Entry]:
    """Weight and bias of queries, keys and values that are three layers there and one here; every head has its own key and value."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    return [
        Entry(
            f"{native}{kind}",
            (3 * hidden, *columns),
            tuple((f"{hf}{part}.{kind}", (hidden, *columns)) for part in ("query", "key", "value")),
            GroupedQKV(heads, heads, model.head_dim),
        )
        for kind, columns in (("weight", (hidden,)), ("bias", ()))
    ]


def check_settings(model: ModelConfig, class_name: str, can: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ConfigError naming the first setting of which `class_name` has not the value that `model` has."""
    for name, values in can.items():
        value = getattr(model, name)
        if value not in values:
            raise ConfigError(
                f"model.{name} = {value} cannot be expressed by {class_name}, which has {' or '.join(map(str, values))}. "
                "Such a model trains and evaluates, but has no Hugging Face folder."
            )


def check_linear_rope(model: ModelConfig, class_name: str) -> None:
    """Raise ConfigError where the rotary embedding is stretched in another way than by dividing positions."""
    if model.rope_scaling and model.rope_scaling.rope_type != "linear":
        raise ConfigError(
            f"model.rope_scaling.rope_type = {model.rope_scaling.rope_type} cannot be expressed by {class_name}, which has linear. "
            "Such a model trains and evaluates, but has no Hugging Face folder."
        )


def interpolation_factor(model: ModelConfig) -> float | None:
    """What encoders' folders call the factor of linear rope_scaling, `seq_len_interpolation_factor`; None where there is none."""
    return model.rope_scaling.factor if model.rope_scaling else None


def linear_rope(hf: Mapping[str, Any]) -> dict[str, Any] | None:
    """Section model.rope_scaling of a folder with `seq_len_interpolation_factor`; None where it has none."""
    factor = hf.get("seq_len_interpolation_factor")
    return None if factor is None else {"rope_type": "linear", "factor": factor}


def check_head_widths(model: ModelConfig, class_name: str) -> None:
    """Raise ConfigError unless every head has a key and a value of its own, and all heads together are as wide as the hidden states."""
    problems = (
        ("num_query_groups", model.query_groups, model.num_attention_heads),
        ("num_attention_heads x kv_channels", model.num_attention_heads * model.head_dim, model.hidden_size),
    )
    for name, value, only in problems:
        if value != only:
            raise ConfigError(
                f"model.{name} = {value} cannot be expressed by {class_name}, which has {only}. "
                "Such a model trains and evaluates, but has no Hugging Face folder."
            )


def check_expressible(hf: Mapping[str, Any], fixed: Mapping[str, Any], what: str) -> None:
    """Raise ConfigError for a field of config.json that has another value than the one `fixed` gives; absent means this value."""
    for field, only in fixed.items():
        if hf.get(field, only) != only:
            raise ConfigError(f"config.json: {field} = {hf[field]!r} cannot be expressed by our {what}, which has {only!r} only.")


def check_whole_numbers(hf: Mapping[str, Any], fields: Iterable[str], what: str) -> None:
    """Raise ConfigError for a field of config.json that is missing or no whole number; `what` is the configuration's class."""
    for field in fields:
        if type(hf.get(field)) is not int:
            raise ConfigError(f"config.json: {field} = {hf.get(field)!r} is not a whole number. {what} must give it.")


def check_names(what: str, found: Iterable[str], expected: Iterable[str], shapes: Mapping[str, Shape] | None = None) -> None:
    """Raise CheckpointError unless both hold the same names, each once; `shapes` are said of those that are missing."""
    have, want = Counter(iter(found)), Counter(iter(expected))
    repeated = sorted(name for name in {**have, **want} if have[name] > 1 or want[name] > 1)
    missing, unexpected = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    problems = (("named twice", repeated), ("missing", missing), ("unexpected", unexpected))
    text = "; ".join(f"{len(names)} {problem}: {_some(names, shapes or {})}" for problem, names in problems if names)
    if text:
        raise CheckpointError(f"{what}: {text}. The model section and the tensors must describe the same model.")


def check_shapes(world: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raise CheckpointError naming the first tensor of `expected` that has another shape in `found`."""
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise CheckpointError(f"{world} tensor {name} has shape {tuple(found[name])}; the model section asks for {tuple(shape)}.")


def _some(names: Sequence[str], shapes: Mapping[str, Shape]) -> str:
    said = (f"{name} {tuple(shapes[name])}" if name in shapes else name for name in names[:4])
    return ", ".join(said) + (", ..." if len(names) > 4 else "")
