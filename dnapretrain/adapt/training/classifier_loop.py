"""The training of one classifier on one split: a plain loop with early stopping; the weights of the best epoch are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dnapretrain.adapt.backbones.encoding import SequenceEncoder, TokenBatch
from dnapretrain.adapt.sequences.targets import DEFAULT_METRIC, LOW_IS_GOOD, METRICS, Target, class_weights
from dnapretrain.adapt.training.heads import restore, trainable_state
from dnapretrain.adapt.training.task_data import IGNORED, TaskRows, make_batch, training_batches
from dnapretrain.errors import ConfigError, DataError

SCHEDULES = ("linear", "cosine", "constant", "plateau")


@dataclass(frozen=True)
class LoopSettings:
    """How a classifier learns."""

    lr: float = 3e-5
    batch_size: int = 32
    micro_batch_size: int | None = None
    """Sequences at once; None: the batch. The gradient is the same."""
    epochs: int = 10
    patience: int = 3
    """Epochs without a better validation before training stops; 0: never."""
    select_by: str = ""
    """A metric, or `loss`; "": mcc, auprc of multilabel, pearson of regression, bits_per_base of causal."""
    schedule: str = "linear"
    """After the warmup: linear or cosine to 0, constant, or plateau (half after an epoch that is not better)."""
    warmup: float = 0.1
    """Below 1 a share of the steps, else steps."""
    weight_decay: float = 0.01
    """Of matrices; not of norms, biases and IA3's vectors."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float = 1.0
    class_weights: bool = False
    dtype: str = "auto"
    """bf16: autocast, weights stay fp32. auto: bf16 on a GPU."""

    def selected(self, task: str) -> str:
        """What the best epoch is the best of."""
        return self.select_by or DEFAULT_METRIC[task]

    def check(self, task: str) -> None:
        """Raise ConfigError for what cannot be."""
        if task not in METRICS:
            raise ConfigError(f"task = {task} is none of {', '.join(METRICS)}.")
        if self.selected(task) not in (*METRICS[task], "loss"):
            raise ConfigError(f"select_by = {self.select_by} is none of {', '.join(METRICS[task])}, loss.")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule = {self.schedule} is none of {', '.join(SCHEDULES)}.")
        for name in ("batch_size", "epochs", "micro_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} = {value} is below 1.")
        if not self.lr > 0 or self.warmup < 0 or self.patience < 0 or not self.clip_grad > 0:
            raise ConfigError("lr and clip_grad must be above 0, warmup and patience 0 or more.")
        if self.dtype not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"dtype = {self.dtype} is none of auto, fp32, bf16.")


@dataclass
class Stopper:
    """Early stopping: what the best epoch was, and when to stop."""

    patience: int
    best: float = -math.inf
    best_epoch: int = -1
    waited: int = 0

    def better(self, value: float, epoch: int) -> bool:
        """Whether this epoch is the best so far. A NaN is never."""
        if value > self.best:
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether to stop now."""
        return bool(self.patience) and self.waited >= self.patience


@dataclass
class Learned:
    """What a training run did."""

    best_epoch: int
    """From 1."""
    stopped_early: bool
    epochs: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Scale:
    """Numbers are learned less their mean over their standard deviation, both of the training rows."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, truth: list[NDArray[Any]]) -> Scale:
        """Raises DataError for a column whose values are all one."""
        values = np.stack(truth)
        deviation = values.std(axis=0)
        if not (deviation > 0).all():
            raise DataError(f"all training rows have the number {values[0, int(deviation.argmin())]:g} in a column. Nothing to learn.")
        return cls(values.mean(axis=0), deviation)


def loss_sums(logits: Tensor, labels: Tensor, target: Target, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum of weighted losses, and of weights: their quotient is the loss. A batch in parts so has the gradient of the whole.

    Classes: cross-entropy, each row (token) with the weight of its class; multilabel: binary cross-entropy, `weights` on the ones;
    numbers: squares.
    """
    logits = logits.float()
    if target.task == "regression":
        return ((logits - labels) ** 2).sum(), torch.tensor(float(labels.numel()), device=logits.device)
    if target.task == "multilabel":
        loss = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="sum")
        return loss, torch.tensor(float(labels.numel()), device=logits.device)
    flat, classes = logits.flatten(0, -2), labels.flatten()
    loss = F.cross_entropy(flat, classes, weight=weights, reduction="sum", ignore_index=IGNORED)
    counted = classes[classes != IGNORED]
    total = weights[counted].sum() if weights is not None else torch.tensor(float(len(counted)), device=logits.device)
    return loss, total


def rate_at(step: int, steps: int, settings: LoopSettings) -> float:
    """The share of the learning rate at a step from 0."""
    warm = min(steps, round(settings.warmup * steps if settings.warmup < 1 else settings.warmup))
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(1, steps - warm)
    if settings.schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule == "cosine" else 1.0


class ClassifierLoop:
    """A model, its data and how it learns."""

    def __init__(self, model: Any, encoder: SequenceEncoder, target: Target, settings: LoopSettings, device: str, seed: int) -> None:
        settings.check(target.task)
        self.model, self.encoder, self.target, self.settings = model.to(device), encoder, target, settings
        self.device, self.seed = device, seed
        self.scale: Scale | None = None
        self.weights: Tensor | None = None
        body = model.base_model
        self.frozen_body = (
            body if not hasattr(model, "peft_config") and not all(weight.requires_grad for weight in body.parameters()) else None
        )

    def fit(self, train: TaskRows, valid: TaskRows, say: Callable[[str], None] = lambda line: None) -> Learned:
        """Train, and leave the weights of the best epoch in the model. Raises DataError where the loss is not finite."""
        settings = self.settings
        if self.target.task == "regression":
            self.scale = Scale.of(train.truth)
        if settings.class_weights:
            self.weights = torch.tensor(class_weights(self.target, train.truth), dtype=torch.float32, device=self.device)
        torch.manual_seed(self.seed)
        random = np.random.default_rng(self.seed)
        optimizer = self._optimizer()
        steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
        stopper, learned, factor = Stopper(settings.patience), Learned(0, False), 1.0
        begun, best = time.monotonic(), trainable_state(self.model)
        for epoch in range(settings.epochs):
            losses = []
            self._train_mode()
            for picked in training_batches(len(train), settings.batch_size, random):
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * factor * rate_at(learned.steps, steps, settings)
                losses.append(self._step(optimizer, train, picked))
                learned.steps += 1
            found = {"epoch": epoch + 1, "train_loss": float(np.mean(losses)), **self.evaluate(valid)}
            learned.epochs.append(found)
            value = found[settings.selected(self.target.task)]
            if stopper.better(-value if settings.selected(self.target.task) in LOW_IS_GOOD else value, epoch):
                best = trainable_state(self.model)
            else:
                factor *= 0.5 if settings.schedule == "plateau" else 1.0
            say(f"epoch {epoch + 1}: train loss {found['train_loss']:.4f}, validation loss {found['loss']:.4f}, {self._shown(found)}")
            if stopper.stop:
                learned.stopped_early = True
                break
        restore(self.model, best)
        learned.best_epoch, learned.seconds = stopper.best_epoch + 1, time.monotonic() - begun
        return learned

    def _shown(self, found: dict[str, float]) -> str:
        name = self.settings.selected(self.target.task)
        name = DEFAULT_METRIC[self.target.task] if name == "loss" else name
        return f"{name} {found[name]:.4f}"

    def _train_mode(self) -> None:
        self.model.train()
        if self.frozen_body is not None:  # its dropout would only blur what the head sees
            self.frozen_body.eval()

    def _optimizer(self) -> torch.optim.AdamW:
        named = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        decayed = [weight for name, weight in named if weight.ndim > 1 and "ia3_l" not in name]
        others = [weight for name, weight in named if weight.ndim <= 1 or "ia3_l" in name]
        groups = [{"params": decayed, "weight_decay": self.settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.settings.lr, betas=self.settings.betas)

    def _step(self, optimizer: torch.optim.Optimizer, rows: TaskRows, picked: NDArray[np.int64]) -> float:
        size = self.settings.micro_batch_size or len(picked)
        optimizer.zero_grad()
        loss_sum, weight_sum = 0.0, 0.0
        for start in range(0, len(picked), size):
            loss, weight = self._losses(rows, picked[start : start + size].tolist())
            loss.backward()
            loss_sum, weight_sum = loss_sum + loss.item(), weight_sum + weight.item()
        if not math.isfinite(loss_sum):
            raise DataError(f"the loss is {loss_sum}. Lower the learning rate ({self.settings.lr:g}), or use --dtype fp32.")
        learning = [weight for weight in self.model.parameters() if weight.grad is not None]
        for parameter in learning:
            parameter.grad /= weight_sum
        torch.nn.utils.clip_grad_norm_(learning, self.settings.clip_grad)
        optimizer.step()
        return loss_sum / weight_sum

    def _losses(self, rows: TaskRows, picked: list[int]) -> tuple[Tensor, Tensor]:
        batch, labels = make_batch(rows, picked, self.target, self.encoder)
        return self._loss_of(self._logits(batch), labels)

    def _loss_of(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is not None:
            labels = ((labels.double() - torch.from_numpy(self.scale.mean)) / torch.from_numpy(self.scale.deviation)).float()
        return loss_sums(logits, labels.to(self.device), self.target, self.weights)

    def _logits(self, batch: TokenBatch) -> Tensor:
        batch = batch.to(self.device)
        with self._precision():
            logits: Tensor = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return logits

    def _precision(self) -> AbstractContextManager[Any]:
        kind = self.device.split(":")[0]
        half = self.settings.dtype == "bf16" or (self.settings.dtype == "auto" and kind == "cuda")
        return torch.autocast(kind, torch.bfloat16) if half else nullcontext()

    @torch.no_grad()
    def evaluate(self, rows: TaskRows) -> dict[str, float]:
        """`loss`, and the metrics of the task."""
        self.model.eval()
        found: list[NDArray[np.float64]] = [np.empty(0)] * len(rows)
        loss_sum, weight_sum = 0.0, 0.0
        for picked in self._in_order(rows):
            outputs, loss, weight = self._judged(rows, picked)
            loss_sum, weight_sum = loss_sum + loss.item(), weight_sum + weight.item()
            _put(found, picked, outputs)
        return {"loss": loss_sum / weight_sum, **self.target.scores(rows.truth, found)}

    @torch.no_grad()
    def predict(self, rows: TaskRows) -> list[NDArray[np.float64]]:
        """Of each row: probabilities [classes] or [labels], numbers [columns] as they were given, probabilities [bases, classes], or
        [] the loss of its bases in nats (causal)."""
        self.model.eval()
        found: list[NDArray[np.float64]] = [np.empty(0)] * len(rows)
        for picked in self._in_order(rows):
            _put(found, picked, self._predicted(rows, picked))
        return found

    def _judged(self, rows: TaskRows, picked: list[int]) -> tuple[list[NDArray[np.float64]], Tensor, Tensor]:
        """What `predict` gives of these rows, the sum of their losses, and that of the weights."""
        batch, labels = make_batch(rows, picked, self.target, self.encoder)
        logits = self._logits(batch)
        return self._outputs(rows, picked, batch, logits), *self._loss_of(logits, labels)

    def _predicted(self, rows: TaskRows, picked: list[int]) -> list[NDArray[np.float64]]:
        """The first of these, for rows that may have no labels."""
        batch = self.encoder.collate([rows.encoded[row] for row in picked])
        return self._outputs(rows, picked, batch, self._logits(batch))

    def _outputs(self, rows: TaskRows, picked: list[int], batch: TokenBatch, logits: Tensor) -> list[NDArray[np.float64]]:
        logits = logits.double().cpu()
        if self.target.task == "regression":
            outputs = logits.numpy() * (self.scale.deviation if self.scale else 1) + (self.scale.mean if self.scale else 0)
        else:
            outputs = (logits.sigmoid() if self.target.task == "multilabel" else logits.softmax(-1)).numpy()
        if self.target.task != "tokens":
            return list(outputs)
        of_bases = [output[mask] for output, mask in zip(outputs, batch.bases_mask.numpy(), strict=True)]
        return [np.repeat(output, rows.bases_per_token[row], axis=0) for output, row in zip(of_bases, picked, strict=True)]

    def _in_order(self, rows: TaskRows) -> Iterable[list[int]]:
        """Batches of like lengths."""
        order = sorted(range(len(rows)), key=lambda row: -len(rows.encoded[row].ids))
        size = self.settings.micro_batch_size or self.settings.batch_size
        return (order[start : start + size] for start in range(0, len(order), size))


def _put(found: list[NDArray[np.float64]], picked: list[int], outputs: list[NDArray[np.float64]]) -> None:
    for row, output in zip(picked, outputs, strict=True):
        found[row] = output
