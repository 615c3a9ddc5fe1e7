"""What a Hugging Face folder says of itself: configuration, tokenizer, and which of its tensors are the model's."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from dnapretrain.config import ModelConfig, TokenizerConfig
from dnapretrain.convert.safetensors_files import DTYPES
from dnapretrain.convert.table import Entry, Family, Shape, check_names, check_shapes
from dnapretrain.convert.torch_files import FolderReader
from dnapretrain.data.tokens.files import load_hf_tokenizer
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def read_hf_config(directory: Path) -> dict[str, Any]:
    """Content of the folder's config.json; raises ConfigError for one that is missing or malformed."""
    path = directory / "config.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: not a Hugging Face model folder.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not an object.")
    return content


def model_of(directory: Path, family: Family, hf_config: dict[str, Any]) -> ModelConfig:
    """The model section that config.json gives; raises ConfigError."""
    try:
        return family.model_config(hf_config)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ConfigError(f"{directory}/config.json gives a model section that does not hold: {problems}.") from None


def tokenizer_of(directory: Path, family: Family, hf_config: dict[str, Any]) -> tuple[Tokenizer, str]:
    """The folder's tokenizer and where it was found: in its files, or, where it has none, the published one of the family that has as
    many tokens. Raises CheckpointError for files of another tokenizer, ConfigError where its ids are not those of config.json."""
    found = next((name for name in TOKENIZER_FILES if (directory / name).exists()), None)
    if found:
        tokenizer = load_hf_tokenizer(directory)
        _check_ids(directory, family, hf_config, tokenizer)
        return tokenizer, found
    for kind in family.tokenizers:
        tokenizer = build_tokenizer(TokenizerConfig.model_validate({"kind": kind}))
        if tokenizer.vocab_size == hf_config.get("vocab_size"):
            _check_ids(directory, family, hf_config, tokenizer)
            return tokenizer, f"{kind}, by vocab_size = {tokenizer.vocab_size}: the folder has no {' and no '.join(TOKENIZER_FILES)}"
    raise CheckpointError(
        f"{directory} has no {' and no '.join(TOKENIZER_FILES)}, and vocab_size = {hf_config.get('vocab_size')} of config.json is that of "
        f"no tokenizer known for {family.name}. Put the model's tokenizer file there."
    )


def _check_ids(directory: Path, family: Family, hf_config: dict[str, Any], tokenizer: Tokenizer) -> None:
    has = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id, "mask_token_id": tokenizer.mask_id}
    for field in ("vocab_size", *family.token_ids):
        if hf_config.get(field) != has[field]:
            raise ConfigError(f"{directory}: {field} = {hf_config.get(field)} in config.json, but the tokenizer has {has[field]}.")


@dataclass(frozen=True)
class FolderTensors:
    """Which stored tensor is what: `open_tensors` makes one, and nothing is left over then."""

    reader: FolderReader
    keys: dict[str, str]
    """Name in the table -> name in the folder."""
    unread: tuple[str, ...]
    """Names in the folder of tensors that the network never reads."""
    copies: int
    """Second copies of tensors of the table, found equal."""

    def read(self, name: str) -> Tensor:
        """A tensor of the table, by its name there."""
        return self.reader.read(self.keys[name])

    def dtypes(self) -> list[torch.dtype]:
        """Stored types of the tensors of the table."""
        return [self.reader.dtypes[key] for key in self.keys.values()]


def open_tensors(directory: Path, reader: FolderReader, family: Family, model: ModelConfig, entries: list[Entry]) -> FolderTensors:
    """The folder's tensors by their names in the table; raises CheckpointError naming what is missing, left over, mis-shaped or not equal
    to what it must be a copy of, before anything is converted."""
    wanted: dict[str, Shape] = {name: shape for entry in entries for name, shape in entry.hf}
    aliases = {alias: name for alias, name in family.aliases(model).items() if alias not in wanted}
    stored = [(family.table_name(key), key) for key in reader.names()]
    unread = tuple(key for name, key in stored if name not in wanted and re.fullmatch(family.unread, name))
    copies = [(name, key) for name, key in stored if name in aliases]
    left = {*unread, *(key for _, key in copies)}
    read = [(name, key) for name, key in stored if key not in left]
    check_names(f"{directory}", (name for name, _ in read), wanted, wanted)
    keys = dict(read)
    check_shapes("Hugging Face", {name: reader.shapes[key] for name, key in read}, wanted)
    for name, key in read:
        if reader.dtypes[key] not in DTYPES.values():
            raise CheckpointError(f"{directory}: {name} is stored as {reader.dtypes[key]}; weights must be one of {', '.join(DTYPES)}.")
    for name, key in copies:
        if not torch.equal(reader.read(key), reader.read(keys[aliases[name]])):
            raise CheckpointError(f"{directory}: {name} differs from {aliases[name]}; {family.name} has one tensor under both names.")
    return FolderTensors(reader, keys, unread, len(copies))
