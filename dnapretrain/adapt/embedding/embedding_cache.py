"""Embeddings of a whole table, computed once: the name of a cached file is a digest of all that they depend on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain import __version__
from dnapretrain.adapt.backbones.backbone import Backbone
from dnapretrain.adapt.backbones.encoding import Counts
from dnapretrain.adapt.embedding.embed import EmbedSettings, embed_sequences

BLOCK = 1 << 22


def folder_digest(folder: Path, weights: bool = True) -> str:
    """XXH3-128 of what a Hugging Face folder's model depends on: configuration, weights (unless False), tokenizer, code."""
    digest = xxhash.xxh3_128()
    kept = (".safetensors", ".bin", ".py") if weights else (".py",)
    names = {"config.json", "tokenizer.json", "vocab.txt", *(["model.safetensors.index.json"] if weights else [])}
    for path in sorted(path for path in folder.iterdir() if path.is_file() and (path.suffix in kept or path.name in names)):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def cached_embeddings(
    cache: Path, model_digest: str, load: Callable[[], Backbone], sequences: Sequence[str], settings: EmbedSettings, how: dict[str, Any]
) -> tuple[NDArray[np.float32], list[str], bool]:
    """[N, L, H] as `embed_sequences`, notes on what was cut, and whether they were there already.

    how: other settings that vectors depend on (dtype, on_long, max_tokens, random_weights). `load` is called only where vectors are
    missing. Files are written beside and put there whole; one that cannot be read is written again.
    """
    layers = [int(layer) for layer in settings.layers]
    key = xxhash.xxh3_128()
    about = {"model": model_digest, "layers": layers, "pooling": settings.pooling, "both_strands": settings.both_strands, **how}
    key.update(json.dumps({**about, "version": __version__}, sort_keys=True).encode())
    for sequence in sequences:
        key.update(sequence.encode() + b"\n")
    path = cache / f"{key.hexdigest()}.npy"
    notes_path = path.with_suffix(".json")
    try:
        vectors = np.load(path, allow_pickle=False)
        notes = json.loads(notes_path.read_text())
        if vectors.shape[:2] == (len(sequences), len(layers)):
            return vectors, notes, True
    except (OSError, ValueError, EOFError):
        pass
    backbone = load()
    backbone.encoder.counts = Counts()  # of this table alone
    vectors = embed_sequences(backbone, sequences, settings)
    notes = backbone.encoder.counts.lines()
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    with unfinished.open("wb") as file:
        np.save(file, vectors)
    notes_path.write_text(json.dumps(notes))
    unfinished.replace(path)
    return vectors, notes, False
