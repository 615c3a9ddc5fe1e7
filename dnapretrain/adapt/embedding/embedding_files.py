"""Files of embeddings, written chunk by chunk: Parquet, NPZ, HDF5. A file appears whole or not at all.

Parquet  columns name, one per label (text; `label_` before what is a column of ours), layer_<i> (list of H float32). With pooling none:
         tokens (list of text), and layer_<i> is a list of T * H float32, token by token. What was embedded and how stands as JSON under
         the key `dnapretrain` of the schema.
NPZ      names [N], label_<column> [N], layers [L], embeddings [N, L, H] float32, about (JSON). With pooling none: embeddings
         [all tokens, L, H], tokens [all tokens] and offsets [N + 1], where the tokens of each row begin.
HDF5     the same names as NPZ; labels are in the group `labels`; `about` is an attribute of the file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dnapretrain.adapt.extras import need
from dnapretrain.errors import ConfigError

FORMATS = (".parquet", ".npz", ".h5", ".hdf5")
COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class EmbeddedChunk:
    """Rows one after the other."""

    names: Sequence[str]
    labels: Mapping[str, Sequence[str]]
    vectors: NDArray[np.float32]
    """[N, L, H]; with tokens [all tokens of the rows, L, H]."""
    tokens: Sequence[Sequence[str]] | None = None
    """Of each row, where every token has a vector."""


class Writer(Protocol):
    """A file in the making."""

    def write(self, chunk: EmbeddedChunk) -> None:
        """Add rows."""

    def close(self) -> None:
        """Finish the file."""

    def abandon(self) -> None:
        """Let go of it, unfinished."""


@contextmanager
def open_writer(output: Path, layers: Sequence[int], hidden_size: int, per_token: bool, about: dict[str, Any]) -> Iterator[Writer]:
    """Write beside `output`, and put it there at the end; an error leaves what was there. Raises ConfigError for another suffix."""
    kinds: dict[str, Callable[[Path, Sequence[int], int, bool, str], Writer]]
    kinds = {".parquet": ParquetWriter, ".npz": NpzWriter, ".h5": Hdf5Writer, ".hdf5": Hdf5Writer}
    kind = kinds.get(output.suffix.lower())
    if kind is None:
        raise ConfigError(f"{output} ends in none of {', '.join(FORMATS)}. Rename it.")
    if not output.parent.is_dir():
        raise ConfigError(f"{output}: there is no folder {output.parent}. Make it first.")
    unfinished = output.with_name(f".{output.name}.unfinished")
    writer = kind(unfinished, layers, hidden_size, per_token, json.dumps(about))
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.abandon()
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(output)


class ParquetWriter:
    """A row group per chunk."""

    def __init__(self, path: Path, layers: Sequence[int], hidden_size: int, per_token: bool, about: str) -> None:
        self._pa, self._parquet = need("pyarrow", "writing Parquet"), need("pyarrow.parquet", "writing Parquet")
        self._path, self._layers, self._about = path, layers, about
        self._vectors = self._pa.list_(self._pa.float32(), -1 if per_token else hidden_size)
        self._file: Any = None

    def write(self, chunk: EmbeddedChunk) -> None:
        """Add rows."""
        pa = self._pa
        columns: dict[str, Any] = {"name": pa.array(chunk.names, pa.string())}
        for label, values in chunk.labels.items():
            own = label in ("name", "tokens") or label.startswith("layer_")
            columns[f"label_{label}" if own else label] = pa.array(values, pa.string())
        if chunk.tokens is not None:
            columns["tokens"] = pa.array(chunk.tokens, pa.list_(pa.string()))
        for number, layer in enumerate(self._layers):
            flat = pa.array(np.ascontiguousarray(chunk.vectors[:, number]).reshape(-1))
            if chunk.tokens is None:
                columns[f"layer_{layer}"] = pa.FixedSizeListArray.from_arrays(flat, type=self._vectors)
            else:
                offsets = np.cumsum([0, *(len(tokens) * chunk.vectors.shape[2] for tokens in chunk.tokens)])
                columns[f"layer_{layer}"] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
        table = pa.table(columns).replace_schema_metadata({"dnapretrain": self._about})
        if self._file is None:
            self._file = self._parquet.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            self._file.close()

    abandon = close


class NpzWriter:
    """The vectors go to a file beside, of which the number of rows is known at the end only."""

    def __init__(self, path: Path, layers: Sequence[int], hidden_size: int, per_token: bool, about: str) -> None:
        self._path, self._layers, self._hidden, self._about = path, layers, hidden_size, about
        self._raw_path = path.with_name(path.name + ".vectors")
        self._raw = self._raw_path.open("wb")
        self._names: list[str] = []
        self._labels: dict[str, list[str]] = {}
        self._tokens: list[str] = []
        self._offsets = [0] if per_token else []
        self._count = 0

    def write(self, chunk: EmbeddedChunk) -> None:
        """Add rows."""
        self._names += chunk.names
        for label, values in chunk.labels.items():
            self._labels.setdefault(label, []).extend(values)
        for tokens in chunk.tokens or ():
            self._tokens += tokens
            self._offsets.append(len(self._tokens))
        self._raw.write(np.ascontiguousarray(chunk.vectors, "<f4").data)
        self._count += len(chunk.vectors)

    def close(self) -> None:
        """Finish the file."""
        self._raw.close()
        arrays: dict[str, Any] = {"names": self._names, "layers": np.array(self._layers), "about": self._about}
        arrays |= {f"label_{label}": values for label, values in self._labels.items()}
        if self._offsets:
            arrays |= {"tokens": self._tokens, "offsets": np.array(self._offsets)}
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)
            with archive.open("embeddings.npy", "w", force_zip64=True) as file, self._raw_path.open("rb") as raw:
                header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, len(self._layers), self._hidden)}
                np.lib.format.write_array_header_1_0(file, header)
                while block := raw.read(COPY_BYTES):
                    file.write(block)
        self._raw_path.unlink()

    def abandon(self) -> None:
        """Let go of it, unfinished."""
        self._raw.close()
        self._raw_path.unlink(missing_ok=True)


class Hdf5Writer:
    """Datasets that grow."""

    def __init__(self, path: Path, layers: Sequence[int], hidden_size: int, per_token: bool, about: str) -> None:
        h5py = need("h5py", "writing HDF5")
        self._text = h5py.string_dtype()
        self._file = h5py.File(path, "w")
        self._file.attrs["about"] = about
        self._file["layers"] = np.array(layers)
        self._grow("embeddings", np.zeros((0, len(layers), hidden_size), np.float32))
        self._tokens = 0
        if per_token:
            self._grow("offsets", np.zeros(1, np.int64))

    def write(self, chunk: EmbeddedChunk) -> None:
        """Add rows."""
        self._grow("names", chunk.names)
        for label, values in chunk.labels.items():
            self._grow(f"labels/{label.replace('/', '_')}", values)
        for tokens in chunk.tokens or ():
            self._tokens += len(tokens)
            self._grow("tokens", tokens)
            self._grow("offsets", np.array([self._tokens]))
        self._grow("embeddings", chunk.vectors)

    def _grow(self, name: str, values: Any) -> None:
        values = values if isinstance(values, np.ndarray) else np.array(values, self._text)
        if name not in self._file:
            self._file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=True)
            return
        dataset = self._file[name]
        dataset.resize(len(dataset) + len(values), axis=0)
        dataset[len(dataset) - len(values) :] = values

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    abandon = close
