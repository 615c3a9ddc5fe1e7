"""What a pretrained model has to beat: models without pretraining, trained on the same rows and judged on the same rows.

kmer: logistic regression (numbers: ridge regression) on counts of all k-mers of 1 to 6 bases. tokens: the same on the mean of the
one-hot tokens of the model's own tokenizer. cnn: dilated convolutions over one-hot bases in the manner of BPNet. The linear models are
those of frozen hidden states too (frozen.py).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dnapretrain.adapt.backbones.encoding import Counts, SequenceEncoder
from dnapretrain.adapt.extras import need
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import DEFAULT_METRIC, Target
from dnapretrain.adapt.training.classifier_loop import Scale, Stopper
from dnapretrain.errors import ConfigError

BASELINES = ("kmer", "tokens", "cnn")
NEWTON_WEIGHTS = 4096
"""Logistic regression on dense features, which go together, is solved by Newton's method up to so many weights; lbfgs would not end."""
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""C of logistic regression; the validation rows choose."""
RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""alpha of ridge regression, of numbers less their mean over their standard deviation; the validation rows choose."""
TASKS = ("classification", "regression")
MAX_K = 6


@dataclass(frozen=True)
class Parts:
    """A task's tables."""

    train: SequenceTable
    valid: SequenceTable
    test: SequenceTable


def run_baseline(
    name: str, parts: Parts, target: Target, encoder: SequenceEncoder | None, seed: int
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Probabilities [test rows, classes] or numbers [test rows, columns], and what was chosen.

    Raises ConfigError for an unknown name, and for tasks but those of TASKS.
    """
    if name not in BASELINES:
        raise ConfigError(f"baseline = {name} is none of {', '.join(BASELINES)}.")
    if target.task not in TASKS:
        raise ConfigError(f"baselines are of {' and '.join(TASKS)}; the task is {target.task}. Leave them out.")
    if name == "cnn":
        return convolution_baseline(parts, target, seed)
    if name == "kmer":
        features = [kmer_counts(table.sequences) for table in (parts.train, parts.valid, parts.test)]
    elif encoder is None:
        raise ConfigError("baseline tokens needs a model's tokenizer. Name a model.")
    else:
        features = [token_shares(table.sequences, encoder) for table in (parts.train, parts.valid, parts.test)]
    return linear_model(features, parts, target)


def linear_model(features: list[Any], parts: Parts, target: Target) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Of features [rows, F] of the three tables, what `run_baseline` gives. Those of an array are standardised, sparse ones only scaled."""
    truth = [np.array(target.truth(table)) for table in (parts.train, parts.valid)]
    return _ridge(features, truth, target) if target.task == "regression" else _logistic(features, truth, target)


def _scaled(features: list[Any]) -> tuple[Any, ...]:
    preprocessing = need("sklearn.preprocessing", "a baseline")
    scaler = preprocessing.StandardScaler() if isinstance(features[0], np.ndarray) else preprocessing.MaxAbsScaler()
    scaler.fit(features[0])
    return tuple(scaler.transform(one) for one in features)


def kmer_counts(sequences: Sequence[str], max_k: int = MAX_K) -> Any:
    """Sparse [N, 4 + 16 + ... + 4^max_k] shares of overlapping k-mers, each length by itself; k-mers with other letters count nowhere."""
    sparse = need("scipy.sparse", "the k-mer baseline")
    codes = np.full(256, -1, np.int64)
    codes[np.frombuffer(b"ACGT", np.uint8)] = np.arange(4)
    offsets = np.cumsum([0, *(4**k for k in range(1, max_k + 1))])
    rows, columns, values = [], [], []
    for row, sequence in enumerate(sequences):
        letters = codes[np.frombuffer(sequence.encode(), np.uint8)]
        for k in range(1, min(max_k, len(letters)) + 1):
            windows = np.lib.stride_tricks.sliding_window_view(letters, k)
            known = windows[(windows >= 0).all(axis=1)]
            if not len(known):
                continue
            found, counts = np.unique(known @ (4 ** np.arange(k)[::-1]), return_counts=True)
            rows.append(np.full(len(found), row))
            columns.append(offsets[k - 1] + found)
            values.append(counts / len(known))
    shape = (len(sequences), int(offsets[-1]))
    if not rows:
        return sparse.csr_matrix(shape)
    return sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)


def token_shares(sequences: Sequence[str], encoder: SequenceEncoder) -> Any:
    """Sparse [N, vocabulary] mean of the one-hot tokens that stand for bases."""
    sparse = need("scipy.sparse", "the token baseline")
    plain = replace(encoder, max_tokens=sys.maxsize, counts=Counts())
    rows, columns, values = [], [], []
    for one in plain.encode_all(sequences):
        tokens, counts = np.unique(one.ids[one.specials[0] : len(one.ids) - one.specials[1]], return_counts=True)
        rows.append(np.full(len(tokens), one.row))
        columns.append(tokens)
        values.append(counts / one.num_tokens)
    shape = (len(sequences), encoder.tokenizer.vocab_size)
    return sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)


def _logistic(features: list[Any], truth: list[NDArray[np.int64]], target: Target) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Logistic regression on scaled features; the penalty by the MCC of the validation rows."""
    linear = need("sklearn.linear_model", "a baseline")
    train, valid, test = _scaled(features)
    is_small = isinstance(train, np.ndarray) and train.shape[1] * len(target.classes) <= NEWTON_WEIGHTS
    solver = "newton-cholesky" if is_small else "lbfgs"
    best: tuple[float, float, Any] | None = None
    for penalty in PENALTIES:
        model = linear.LogisticRegression(C=penalty, max_iter=300, solver=solver).fit(train, truth[0])
        value = target.scores(list(truth[1]), list(_all_classes(model, valid, target)))["mcc"]
        if best is None or value > best[0]:
            best = (value, penalty, model)
    assert best is not None
    return _all_classes(best[2], test, target), {"C": best[1], "valid_mcc": best[0], "parameters": int(best[2].coef_.size)}


def _ridge(features: list[Any], truth: list[NDArray[np.float64]], target: Target) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Ridge regression on scaled features; the penalty by the correlation with the validation rows, the mean over the columns."""
    linear, scale = need("sklearn.linear_model", "a baseline"), Scale.of(list(truth[0]))
    train, valid, test = _scaled(features)
    wanted = (truth[0] - scale.mean) / scale.deviation

    def numbers(model: Any, rows: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = model.predict(rows).reshape(rows.shape[0], -1) * scale.deviation + scale.mean
        return found

    best: tuple[float, float, Any] | None = None
    for penalty in RIDGES:
        model = linear.Ridge(alpha=penalty).fit(train, wanted)
        value = target.scores(list(truth[1]), list(numbers(model, valid)))["pearson"]
        if best is None or value > best[0]:
            best = (value, penalty, model)
    assert best is not None
    return numbers(best[2], test), {"alpha": best[1], "valid_pearson": best[0], "parameters": int(best[2].coef_.size)}


def _all_classes(model: Any, features: Any, target: Target) -> NDArray[np.float64]:
    """Probabilities of all classes, those too that training did not see."""
    found = np.zeros((features.shape[0], len(target.classes)))
    found[:, model.classes_] = model.predict_proba(features)
    return found


class DilatedConvolutions(nn.Module):
    """One wide convolution over bases, residual ones of doubling dilation, mean and maximum over real positions, a linear layer."""

    def __init__(self, num_classes: int, channels: int = 64, layers: int = 6, width: int = 21, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, channels, width, padding="same")
        self.others = nn.ModuleList(nn.Conv1d(channels, channels, 3, padding="same", dilation=2 ** (at + 1)) for at in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(2 * channels, num_classes)

    def forward(self, bases_B4S: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, 4, S] one-hot and [B, S] of real bases -> [B, classes]. Padding does not reach real positions."""
        mask = mask_BS[:, None].float()
        hidden = F.relu(self.first(bases_B4S)) * mask
        for layer in self.others:
            hidden = (hidden + F.relu(layer(hidden))) * mask
        pooled = torch.cat([hidden.sum(dim=2) / mask.sum(dim=2), hidden.amax(dim=2)], dim=1)  # never below 0: padding is no maximum
        logits: Tensor = self.out(self.dropout(pooled))
        return logits


def one_hot(sequences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """[B, 4, S] and the mask [B, S]; letters but ACGT are zeros."""
    width = max(len(sequence) for sequence in sequences)
    table = np.zeros((256, 4), np.float32)
    table[np.frombuffer(b"ACGT", np.uint8)] = np.eye(4)
    bases, mask = torch.zeros(len(sequences), 4, width), torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        bases[row, :, : len(sequence)] = torch.from_numpy(table[np.frombuffer(sequence.encode(), np.uint8)].T)
        mask[row, : len(sequence)] = True
    return bases, mask


def convolution_baseline(
    parts: Parts, target: Target, seed: int, epochs: int = 20, patience: int = 5, lr: float = 2e-3, batch_size: int = 64
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Train it with early stopping on the MCC (correlation) of the validation rows; probabilities (numbers) of the test rows."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model, metric = DilatedConvolutions(target.num_outputs), DEFAULT_METRIC[target.task]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    scale = Scale.of(target.truth(parts.train)) if target.task == "regression" else None
    labels = np.array(target.truth(parts.train))
    truth = torch.tensor(labels if scale is None else ((labels - scale.mean) / scale.deviation).astype(np.float32))
    valid_truth = target.truth(parts.valid)
    stopper, best = Stopper(patience), copy.deepcopy(model.state_dict())
    for epoch in range(epochs):
        model.train()
        for picked in np.array_split(random.permutation(len(truth)), max(1, len(truth) // batch_size)):
            outputs = model(*one_hot([parts.train.sequences[row] for row in picked]))
            loss = F.cross_entropy(outputs, truth[picked]) if scale is None else F.mse_loss(outputs, truth[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        value = target.scores(valid_truth, list(_outputs(model, parts.valid.sequences, batch_size, scale)))[metric]
        if stopper.better(value, epoch):
            best = copy.deepcopy(model.state_dict())
        if stopper.stop:
            break
    model.load_state_dict(best)
    weights = sum(one.numel() for one in model.parameters())
    about = {"best_epoch": stopper.best_epoch + 1, f"valid_{metric}": stopper.best, "parameters": weights}
    return _outputs(model, parts.test.sequences, batch_size, scale), about


@torch.no_grad()
def _outputs(model: DilatedConvolutions, sequences: Sequence[str], batch_size: int, scale: Scale | None) -> NDArray[np.float64]:
    """Probabilities of the classes, or with a scale numbers as they were given."""
    model.eval()
    logits = torch.cat([model(*one_hot(sequences[at : at + batch_size])).double() for at in range(0, len(sequences), batch_size)])
    found: NDArray[np.float64] = logits.softmax(-1).numpy() if scale is None else logits.numpy() * scale.deviation + scale.mean
    return found
