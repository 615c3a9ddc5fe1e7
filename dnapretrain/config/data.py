"""Section data: the shards a run reads, in which shares, how samples are cut, split and masked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dnapretrain.config.probes import ProbesConfig
from dnapretrain.config.regions import RegionsConfig
from dnapretrain.config.section import Section


class SourceConfig(Section):
    """One shard set to draw training samples from."""

    prefix: Path
    """Shard prefix: `<prefix>.bin`, `.idx`, `.bed` and `.json` exist."""
    weight: float = Field(1.0, gt=0)
    """Share of samples relative to the other sources; kept exactly within each block of samples."""


class StageConfig(Section):
    """A stretch of training with a blend and a context length of its own."""

    until_step: int | None = Field(None, gt=0)
    until_samples: int | None = Field(None, gt=0)
    """Where the stage ends, in one of the two; the last stage has neither. Each source goes on where the last stage of this sequence_length
    left it."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """One for each source of data.train, in their order; 0: not in this stage. Default: those of data.train."""
    blend_alpha: float | None = Field(None, ge=0, le=1)
    """Default: data.blend_alpha."""
    sequence_length: int | None = Field(None, gt=1)
    """Tokens per sample; default: data.sequence_length. Batches keep their number of samples. Samples of another length are cut anew:
    the first stage of a length reads each source from its beginning, in an order of its own."""


class SplitConfig(Section):
    """What is held out of the training shards. A base is on one side only, on both strands."""

    by: Literal["none", "contig", "bed", "block", "cluster"] = "none"
    """contig: whole contigs by name; bed: intervals of a BED file; block: fixed-size blocks by hash of (contig, block); cluster: whole
    clusters of homologous pieces, as `dnapretrain cluster` finds them."""
    valid_contigs: tuple[str, ...] = ()
    test_contigs: tuple[str, ...] = ()
    """Names as in the FASTA headers; whole numbers too."""
    valid_bed: Path | None = None
    test_bed: Path | None = None
    block_size: int = Field(50_000, gt=0)
    """In bases."""
    clusters: Path | None = None
    """Cluster file. Sides get no more than their fraction; what lacks is less than the smallest cluster left to training."""
    valid_fraction: float = Field(0.0, ge=0, lt=1)
    test_fraction: float = Field(0.0, ge=0, lt=1)
    seed: int = 0
    """Key of the hash of blocks or clusters."""

    @field_validator("valid_contigs", "test_contigs", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [str(item) if type(item) is int else item for item in items]


class MaskingConfig(Section):
    """The masked objective: some tokens are hidden and predicted from both sides. Only bases are chosen, each by a keyed hash."""

    mlm_probability: float = Field(0.0, ge=0, lt=1)
    """Share of base tokens that are to be predicted (the field's usual value: 0.15); 0: the causal objective, next token."""
    mask_replace_prob: float = Field(0.8, ge=0, le=1)
    """Share of the chosen tokens that read <mask>."""
    random_replace_prob: float = Field(0.1, ge=0, le=1)
    """Share of them that read a random base or k-mer; the rest stays as it is, and is predicted all the same."""
    span_length: int = Field(1, gt=0)
    """Tokens that are chosen together, a whole 6-mer for 6 single bases: such spans tile a sample from a random offset on, and end at
    each token that cannot be chosen. A span is chosen with mlm_probability, and reads <mask>, random bases or itself as a whole."""


class DataConfig(Section):
    """Where samples come from and how they are cut."""

    train: tuple[SourceConfig, ...] = Field(min_length=1)
    """Shard prefixes to train on: a prefix, a list of prefixes, or a list of {prefix, weight}."""
    blend_alpha: float = Field(0.0, ge=0, le=1)
    """Sources are blended by weight x (training bases)^blend_alpha. 0: by weight alone; 1: in proportion to their size; between:
    small ones are read more often than that (0.3 is usual; a temperature T is 1/T)."""
    stages: tuple[StageConfig, ...] = ()
    """Blends and lengths that follow each other; default: one for the whole run. Those to come may be changed while a run goes on."""
    valid: dict[str, Path] = Field({})
    """Named held-out shards, beside what `split` holds out of the training shards."""
    split: SplitConfig = SplitConfig()
    regions: RegionsConfig = RegionsConfig()
    """Held-out bits per base by class of bases."""
    probes: ProbesConfig = ProbesConfig()
    """Zero-shot checks at every evaluation."""
    sequence_length: int = Field(gt=1)
    """Tokens per sample, in held-out sets and where data.stages do not say otherwise."""
    sampling: Literal["windows", "packed"] = "windows"
    """windows: each sample lies within one document; packed: documents joined by separators fill each sample."""
    document_attention: bool = False
    """Tokens of a packed sample see only those of their own document, and learned positions begin anew with each. A separator belongs to
    the document it begins. Torch attention only, with a mask of sequence_length^2 values per sample."""
    stride: int | None = Field(None, gt=0)
    """Bases between window starts (windows only); default: windows touch and do not overlap."""
    window_length: int | None = Field(None, gt=0)
    """Bases of a window (windows only); default: as many as the tokens of a sample stand for. With fewer, samples end in <pad>."""
    window_jitter: int = Field(0, ge=0)
    """Bases (windows only): each training window starts 0 to so many bases behind its place, drawn anew each epoch; towards the end
    of a document, as many as there is room for. `stride` may leave the room: stride 6000, 5994 bases and jitter 206 read all."""
    pack_order: Literal["document", "contig"] = "document"
    """packed: what each epoch permutes. contig: documents of a contig stay neighbours, in the order of the shard."""
    min_length: int = Field(1, gt=0)
    """Bases: shorter documents and window tails are left out, counted and reported."""
    reverse_complement: float = Field(0.0, ge=0, le=1)
    """Probability that a training sample is read on the other strand."""
    random_phase: bool = False
    """k-mer tokenizers: start each training sample at a random offset of 0 to k-1 bases."""
    lowercase_weight: float = Field(1.0, ge=0)
    """Loss weight of soft-masked (lower-case) bases; upper-case bases weigh 1, ambiguous bases 0.

    The reported loss is the weighted mean; gradients are divided by the number of weighted targets, whatever their weights.
    """
    masking: MaskingConfig = MaskingConfig()
    seed: int = 1234

    @field_validator("train", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        items = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        return [{"prefix": item} if isinstance(item, (str, Path)) else item for item in items]

    @field_validator("valid", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"valid": value} if isinstance(value, (str, Path)) else value

    @property
    def training_lengths(self) -> tuple[int, ...]:
        """Tokens per training sample in each stage, in their order; one where there are no stages."""
        return tuple(stage.sequence_length or self.sequence_length for stage in self.stages) or (self.sequence_length,)

    @property
    def longest_length(self) -> int:
        """Tokens of the longest sample, held-out ones too."""
        return max(self.sequence_length, *self.training_lengths)
