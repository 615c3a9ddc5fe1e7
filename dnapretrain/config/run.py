"""The whole tree, and the numbers that follow from several of its sections."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from dnapretrain.config.checkpoint import CheckpointConfig
from dnapretrain.config.data import DataConfig
from dnapretrain.config.log import LogConfig
from dnapretrain.config.model import ModelConfig
from dnapretrain.config.optim import OptimConfig
from dnapretrain.config.parallel import ParallelConfig
from dnapretrain.config.probes import PROBE_WINDOW
from dnapretrain.config.section import Section
from dnapretrain.config.tokenizer import TokenizerConfig
from dnapretrain.config.train import TrainConfig


class RunConfig(Section):
    """The whole tree."""

    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    optim: OptimConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _bpe_ends(cls, value: Any) -> Any:
        # As DNABERT-2: masked samples of BPE tokens end with [SEP]. Only here are the kinds of both sections known.
        tokenizer, model = (value.get("tokenizer"), value.get("model")) if isinstance(value, dict) else (None, None)
        if not isinstance(tokenizer, dict) or tokenizer.get("kind") != "bpe" or not isinstance(model, dict):
            return value
        return {**value, "tokenizer": {"add_eos": model.get("kind") == "encoder", **tokenizer}}

    def global_batch_size(self, consumed_samples: int) -> int:
        """Samples in the step that begins after `consumed_samples`."""
        full = self.train.global_batch_size
        if self.train.rampup_batch_size is None:
            return full
        start, increment, samples = self.train.rampup_batch_size
        if consumed_samples >= samples:
            return full
        return start + consumed_samples * ((full - start) // increment) // samples * increment

    def samples_after(self, steps: int) -> int:
        """Samples that `steps` steps read from the beginning of the run."""
        samples = 0
        for step in range(steps):
            size = self.global_batch_size(samples)
            if size == self.train.global_batch_size:
                return samples + (steps - step) * size
            samples += size
        return samples

    def steps_before(self, samples: int) -> tuple[int, int]:
        """Steps that read nothing but the first `samples` samples, and how many samples they leave over for the next step."""
        steps, consumed, full = 0, 0, self.train.global_batch_size
        while (size := self.global_batch_size(consumed)) < full and consumed + size <= samples:
            steps, consumed = steps + 1, consumed + size
        more = (samples - consumed) // full if size == full else 0
        return steps + more, samples - consumed - more * full

    def num_microbatches(self, data_parallel_size: int, batch_size: int | None = None) -> int:
        """Micro-batches on each of `data_parallel_size` ranks for a step of `batch_size` samples (default: global_batch_size)."""
        return (batch_size or self.train.global_batch_size) // (self.train.micro_batch_size * data_parallel_size)

    def data_by_samples(self) -> DataConfig:
        """Section data with the ends of its stages counted in samples, as the streams want them."""
        stages = tuple(
            stage.model_copy(update={"until_step": None, "until_samples": self.samples_after(stage.until_step)})
            if stage.until_step
            else stage
            for stage in self.data.stages
        )
        return self.data.model_copy(update={"stages": stages})

    @property
    def is_masked(self) -> bool:
        """True for the masked objective, False for next-token prediction."""
        return self.model.kind == "encoder"

    @property
    def torch_only(self) -> str:
        """Why these settings can have no layers of Transformer Engine (as of 2.11), in words; '' where they can."""
        if self.data.document_attention:
            return "only they mask by documents"  # Transformer Engine takes such a mask in its slowest kernels only
        if self.parallel.context_parallel_size == 1:
            return ""
        if self.model.position_embedding_type == "alibi":
            return "Transformer Engine has no ALiBi with context parallelism"
        if self.train.precision == "fp32":
            return "Transformer Engine has no fp32 kernels with context parallelism"
        return ""

    @property
    def bases_per_loss(self) -> int:
        """Bases that the loss of one target is counted over: those of a token, or 1 where the loss is per base."""
        return 1 if self.train.loss == "nucleotide" else self.tokenizer.bases_per_token

    @property
    def probe_word(self) -> int:
        """Bases that windows of data.probes are a multiple of: those of a token, where all have as many."""
        return 1 if self.tokenizer.kind == "bpe" else self.tokenizer.bases_per_token

    @property
    def longest_probe_window(self) -> int:
        """Bases that a sample has tokens for; of byte pairs by their nominal number."""
        specials = self.tokenizer.add_bos + self.tokenizer.add_eos if self.is_masked else self.tokenizer.add_bos - 1
        return (self.data.sequence_length - specials) * self.tokenizer.bases_per_token

    @property
    def probe_window(self) -> int:
        """Bases of a window of data.probes."""
        wanted = self.data.probes.window_length or min(PROBE_WINDOW, self.longest_probe_window)
        return wanted - wanted % self.probe_word

    @property
    def max_positions(self) -> int:
        """Longest input in tokens."""
        return self.model.max_position_embeddings or self.data.longest_length

    @property
    def lr_decay_steps(self) -> int:
        """Step at which the learning rate stops decaying."""
        return self.optim.lr_decay_steps or self.train.train_steps
