"""What a model was trained on, for the card of its folder: from the manifests of its shards, the lock of a corpus, and the run's log.

Nothing is made up: a shard without its manifest is named as such, and what was found today is held against the digest of the checkpoint.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import xxhash

from dnapretrain.config import RunConfig
from dnapretrain.data.corpora.build import LOCK_NAME
from dnapretrain.data.sampling.lengths import train_stream
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError

ACCESSION = re.compile(r"GC[AF]_\d{9}\.\d+|N[CGTWZ]_[A-Z0-9]+\.\d+")
"""Of an assembly or a RefSeq sequence, as NCBI writes them, within the name of a file."""
LOCK_FOLDERS = 3
"""A corpus folder is at most so many folders above its shards."""
NOT_CHECKED = "not checked"


def training_data(config: RunConfig, tokenizer: Tokenizer, state: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """Sources, split, counts and digests, as plain values to be written as JSON; never raises for data that are no longer there.

    `state` is that of the checkpoint, `start` the start record of the run's log (empty where there is none), whose counts say what was
    used and held out of each source. `digest_check` is `equal`, `differs` or `not checked: reason`.
    """
    counted = {source["prefix"]: source for source in start.get("data", {}).get("sources", [])}
    sources = [
        {"prefix": str(source.prefix), "weight": source.weight, "in_run": counted.get(str(source.prefix)), **_shard(source.prefix)}
        for source in config.data.train
    ]
    split = {key: value for key, value in config.data.split.model_dump(mode="json").items() if value not in (None, [], 0.0)}
    return {
        "data_digest": state.get("data_digest"),
        "digest_check": _digest_check(config, tokenizer, state),
        "split": split if config.data.split.by != "none" else {"by": "none"},
        "sources": sources,
        "held_out_shards": {name: {"prefix": str(prefix), **_shard(prefix)} for name, prefix in config.data.valid.items()},
    }


def _digest_check(config: RunConfig, tokenizer: Tokenizer, state: dict[str, Any]) -> str:
    if not state.get("data_digest"):
        return f"{NOT_CHECKED}: the checkpoint records no digest"
    try:
        found = train_stream(config.data_by_samples(), tokenizer).digest_at(state.get("consumed_samples") or 0)
    except (ConfigError, DataError, OSError) as error:
        return f"{NOT_CHECKED}: {error}"
    return "equal" if found == state["data_digest"] else "differs"


def _shard(prefix: Path) -> dict[str, Any]:
    """`manifest` and, where the shard is of a corpus, `corpus`; None and `missing` where there is no manifest."""
    path = prefix.with_name(f"{prefix.name}.json")
    try:
        manifest = json.loads(path.read_text())
        inputs = [dict(source) for source in manifest.get("sources", [])]
        cleaning, counts, files = manifest["cleaning"], manifest["counts"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"manifest": None, "missing": f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else 'cannot be read'}"}
    corpus = _corpus(prefix)
    for source in inputs:
        source |= _origin(Path(str(source.get("path", ""))).name, corpus["entries"] if corpus else [])
    kept = {key: manifest[key] for key in ("content", "tool_version", "extraction", "haplotypes", "skipped") if key in manifest}
    digest = manifest.get("bases", files.get("bin", {})).get("xxh3_128")
    shard = {**kept, "cleaning": cleaning, "counts": counts, "xxh3_128": digest, "inputs": inputs}
    return {"manifest": shard, **({"corpus": {key: corpus[key] for key in ("name", "lock", "xxh3_128")}} if corpus else {})}


def _corpus(prefix: Path) -> dict[str, Any] | None:
    """Name, entries, path and digest of the lock above a shard that lists this shard."""
    for folder in [*prefix.absolute().parents][:LOCK_FOLDERS]:
        path = folder / LOCK_NAME
        if not path.is_file():
            continue
        try:
            content = path.read_bytes()
            lock = json.loads(content)
            if prefix.absolute().relative_to(folder).as_posix() not in lock["shards"]:
                return None
            return {"name": lock["name"], "entries": lock["entries"], "lock": str(path), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return None


def _origin(file: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Accession, species and URL of an input file: of the lock's entry, else the accession in its name, else nothing."""
    for entry in entries:
        if file.startswith(f"{entry.get('name')}."):
            return {key: entry[key] for key in ("accession", "species", "url") if entry.get(key)}
    found = ACCESSION.search(file)
    return {"accession": found.group()} if found else {}
