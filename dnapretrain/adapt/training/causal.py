"""Causal fine-tuning: a decoder learns to write the sequences of a table, told a condition of each where there is one.

A row is <bos>, the control prompt of its condition (controls.py), the sequence, and the end token. The loss is that of the sequence and
of its end; the control prompt is only read, and so are tokens that hold a base other than A, C, G, T. Bits per base leave the end out.
The 1 to k - 1 bases behind the last whole k-mer are filled up with A, as GENERator's script does: a stop codon there is not lost.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dnapretrain.adapt.backbones.controls import Controls
from dnapretrain.adapt.backbones.encoding import Encoded, SequenceEncoder, TokenBatch
from dnapretrain.adapt.backbones.folder import load_model
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import Target
from dnapretrain.adapt.training.classifier_loop import ClassifierLoop, LoopSettings
from dnapretrain.adapt.training.heads import MODEL_DIR
from dnapretrain.adapt.training.task_data import TaskRows
from dnapretrain.errors import ConfigError
from dnapretrain.evaluate.counted import token_bases


def causal_rows(table: SequenceTable, encoder: SequenceEncoder, controls: Controls) -> TaskRows:
    """The rows as tokens; `truth` holds of each the bases that are to be predicted.

    Raises DataError for a sequence longer than the model (unless it is truncated; then it has no end), and for an unknown condition.
    """
    if encoder.on_long == "window":
        raise ConfigError("--on-long window would write the parts of a sequence as sequences of their own. Use error or truncate.")
    tokenizer, lengths_V = encoder.tokenizer, token_bases(encoder.tokenizer)
    end = [tokenizer.eos_id] if controls.learned_end else []
    inner = replace(encoder, max_tokens=encoder.max_tokens - controls.width - len(end))  # room for these; counts are shared
    encoded, bases = [], []
    for row, (name, sequence) in enumerate(zip(table.names, table.sequences, strict=True)):
        filled = 0 if tokenizer.is_variable else -len(sequence) % tokenizer.k
        cut = inner.counts.truncated
        [one] = inner.encode(sequence + "A" * filled, row, name)
        is_cut = inner.counts.truncated > cut
        begin = one.ids[: one.specials[0]]
        words = one.ids[one.specials[0] :]
        code = (
            controls.tokens(controls.number(table.labels[controls.column][row], row + 1, table.source), tokenizer) if controls.names else ()
        )
        last = [] if is_cut else end
        ids = np.concatenate([begin, np.array(code, np.int64), words, np.array(last, np.int64)])
        first = len(begin) + len(code)
        encoded.append(Encoded(row, ids, (first, len(last))))
        unread = int(lengths_V[words[0]]) if not first else 0  # nothing stands before it
        bases.append(np.array(lengths_V[words].sum() - unread - (0 if is_cut else filled), np.int64))
        inner.counts.filled += 0 if is_cut else filled
        inner.counts.filled_rows += bool(filled) and not is_cut
    return TaskRows(encoded, bases, [])


class CausalLoop(ClassifierLoop):
    """The loop of classifiers, for the next token."""

    def __init__(self, model: Any, encoder: SequenceEncoder, target: Target, settings: LoopSettings, device: str, seed: int) -> None:
        super().__init__(model, encoder, target, settings, device, seed)
        self._bases_V = torch.from_numpy(token_bases(encoder.tokenizer)).to(device)

    def _losses(self, rows: TaskRows, picked: list[int]) -> tuple[Tensor, Tensor]:
        nats_BS, learned_BS, _ = self._nats(rows, picked)
        return (nats_BS * learned_BS).sum(), learned_BS.sum()

    def _nats(self, rows: TaskRows, picked: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token but the first: its loss, 1 where it is learned, 1 where it is learned and stands for bases; all [B, S - 1]."""
        batch: TokenBatch = self.encoder.collate([rows.encoded[row] for row in picked]).to(self.device)
        logits_BSV = self._logits(batch).float()[:, :-1]
        labels_BS = batch.input_ids[:, 1:]
        nats_BS = F.cross_entropy(logits_BSV.transpose(1, 2), labels_BS, reduction="none")
        bases_BS = (batch.bases_mask[:, 1:] & (self._bases_V[labels_BS] > 0)).float()
        ends_BS = torch.zeros_like(bases_BS)
        for at, row in enumerate(picked):
            one = rows.encoded[row]
            if one.specials[1]:
                ends_BS[at, len(one.ids) - 2] = 1
        return nats_BS, bases_BS + ends_BS, bases_BS

    def _judged(self, rows: TaskRows, picked: list[int]) -> tuple[list[NDArray[np.float64]], Tensor, Tensor]:
        nats_BS, learned_BS, bases_BS = self._nats(rows, picked)
        of_bases = (nats_BS * bases_BS).double().sum(dim=1).cpu().numpy()
        return list(of_bases), (nats_BS * learned_BS).sum(), learned_BS.sum()

    def _predicted(self, rows: TaskRows, picked: list[int]) -> list[NDArray[np.float64]]:
        return self._judged(rows, picked)[0]


def load_causal(folder: Path, seed: int, from_scratch: bool, device: str) -> Any:
    """The decoder of a folder, or one of the same architecture with weights drawn from `seed`; fp32."""
    model = load_model(folder, device, is_masked=False)
    torch.manual_seed(seed)
    return type(model)(model.config).float().to(device) if from_scratch else model


def save_causal(model: Any, base: Path, directory: Path, method: str, controls: Controls, encoder: SequenceEncoder) -> None:
    """`directory`/model, a whole folder: adapters are merged into the weights."""
    place = directory / MODEL_DIR
    if method in ("lora", "ia3"):
        model = model.merge_and_unload()
    model.save_pretrained(str(place))
    for path in base.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "vocab")):
            shutil.copyfile(path, place / path.name)
    controls.write(place, encoder.tokenizer)
