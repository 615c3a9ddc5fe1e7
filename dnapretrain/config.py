"""The configuration of a run: one frozen tree of settings, each explained where it stands.

`config_file` loads it, `config_rules` holds what must fit between settings. Each part of the program receives
only its own sections. Numbers that follow from others are properties and cannot be set.
"""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

VOCAB_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this, whatever the tensor-parallel size."""


class Section(BaseModel):
    """A frozen part of the tree that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML 1.1 reads 1e5 as a string; pydantic makes numbers of such strings, but whole ones only for float fields.
        if isinstance(value, str) and cls.model_fields[info.field_name or ""].annotation in (int, int | None):
            with contextlib.suppress(ValueError):
                return float(value)
        return value


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


class RegionFileConfig(Section):
    """Regions of contigs: a GFF3 or GTF file (plain or gzip), or a BED file."""

    path: Path
    assembly: str | None = None
    """The assembly whose contigs the file names; needed where several assemblies have contigs of one name."""
    contig_names: str | None = None
    """How names of the file are matched with contigs: by default they are equal (BED: or `assembly:contig`). chr: they may differ in 'chr'
    and in that of the mitochondrion; a file: lines of name<tab>contig."""
    skip_missing_contigs: bool = False
    """Leave out what lies on names that no contig has; else they are an error."""


class RegionsConfig(Section):
    """Classes of bases that held-out losses are told apart by. They change no loss, and what a run trains on even less."""

    files: dict[str, RegionFileConfig] = {}
    """Name: path, or {path, ...}. A base belongs to the first file that covers it. BED: one class, of this name. GFF3 and GTF: CDS, then
    UTR, then exon (of transcripts without a CDS), then intron; on contigs that such a file knows all else is intergenic."""
    soft_mask: bool = False
    """Tell soft-masked (lower-case) bases from others."""
    gc_edges: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Ascending shares of G and C that part the classes by GC of the surrounding `gc_window`, e.g. [0.35, 0.45, 0.55]; a base belongs to
    the class whose lower edge its window reaches."""
    gc_window: int = Field(1000, gt=0)
    """Bases; windows are laid end to end from the first base of each document on."""
    assembly: bool = False
    """Tell assemblies apart, so species."""

    @field_validator("files", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {str(name): {"path": item} if isinstance(item, (str, Path)) else item for name, item in value.items()}

    @field_validator("gc_edges")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"gc_edges = {list(value)} do not ascend: sort them, each once")
        return value

    @property
    def is_active(self) -> bool:
        """Whether anything is told apart."""
        return bool(self.files or self.soft_mask or self.gc_edges or self.assembly)


ProbeName = Literal[
    "start_codon", "start_frame", "stop_codon", "stop_frame", "splice_donor", "splice_acceptor", "synonymous", "reverse_complement"
]
"""What a probe asks; docs/in-loop-probes.md explains each."""


PROBE_WINDOW = 256
"""Bases of its windows where nothing else is set."""


class ProbesConfig(Section):
    """Questions of biology that the model is asked at every evaluation, without training: is the true sequence likelier than an altered
    one? They change nothing of what a run trains on. Off without `genome` and `annotation`."""

    genome: Path | None = None
    """A shard prefix, or a sequence file, which every rank reads anew at every start: for large genomes give the shard."""
    annotation: Path | None = None
    """Its genes: GFF3 or GTF, plain or gzip."""
    assembly: str | None = None
    """The assembly of the shard that the annotation is for; needed where it holds several."""
    contig_names: str | None = None
    """How names of the annotation are matched with contigs; by default they are equal. chr, or a file, as in data.regions."""
    skip_missing_contigs: bool = False
    """Leave out genes on names that no contig has; else they are an error."""
    within: Path | None = None
    """BED file: only sites whose first base lies there, so that probes can keep to bases that are held out."""
    names: tuple[ProbeName, ...] = Field(
        ("start_codon", "start_frame", "stop_codon", "stop_frame", "splice_donor", "splice_acceptor", "synonymous", "reverse_complement"),
        min_length=1,
    )
    sites: int = Field(200, gt=0)
    """Of each probe at most, and as many controls; chosen by a hash of where they lie, so the same in every run."""
    window_length: int | None = Field(None, gt=0)
    """Bases that the model reads around a site; default 256, or what a sample has room for. In whole words of k-mer tokenizers."""
    controls: bool = True
    """Make the same changes at places that are not annotated, where the letters are the same: what the letters alone are worth."""
    genetic_code: int = 1
    """NCBI's number, for coding sequences without transl_table."""
    force: bool = False
    """Go on where lengths of contigs, or start and stop codons, say that the annotation is of another assembly."""

    @property
    def is_active(self) -> bool:
        """Whether anything is asked."""
        return self.genome is not None and self.annotation is not None


class DataConfig(Section):
    """Where samples come from and how they are cut."""

    train: tuple[SourceConfig, ...] = Field(min_length=1)
    """Shard prefixes to train on: a prefix, a list of prefixes, or a list of {prefix, weight}."""
    blend_alpha: float = Field(0.0, ge=0, le=1)
    """Sources are blended by weight x (training bases)^blend_alpha. 0: by weight alone; 1: in proportion to their size; between:
    small ones are read more often than that (0.3 is usual; a temperature T is 1/T)."""
    stages: tuple[StageConfig, ...] = ()
    """Blends and lengths that follow each other; default: one for the whole run. Those to come may be changed while a run goes on."""
    valid: dict[str, Path] = {}
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


PUBLISHED_TOKENIZERS: dict[str, dict[str, Any]] = {
    "nt_v1": {"k": 6, "base_order": "ATCG", "add_bos": True, "add_eos": False},
    "nt_v2": {"k": 6, "base_order": "ATCG", "add_bos": True, "add_eos": False},
    "generator": {"k": 6, "base_order": "ATCG", "add_bos": True, "add_eos": False},
    "aido_dna": {"k": 1, "base_order": "AGCT", "add_bos": True, "add_eos": True},
}
"""What each published tokenizer has. k and base_order belong to its vocabulary; the other two are defaults."""
BPE_BASES_PER_TOKEN = 5
"""What 4,096 BPE tokens stand for on average, rounded: 4.7 to 5.0 on genomes."""


class TokenizerConfig(Section):
    """How bases become tokens."""

    kind: Literal["nucleotide", "kmer", "nt_v1", "nt_v2", "generator", "aido_dna", "bpe"] = "nucleotide"
    """nucleotide, kmer: our own vocabularies. bpe: byte-pair encoding, the merges in `file`. The others have the ids and rules of
    published models: Nucleotide Transformer v1 and v2, GENERator, AIDO.DNA."""
    file: Path | None = None
    """bpe only: a tokenizer.json with the merges, as `dnapretrain train-bpe` writes it, DNABERT-2's, or that of a checkpoint."""
    vocab_size: int | None = Field(None, gt=0)
    """bpe only: tokens that the file must have. `plan` and `--dry-run` take its word where there is no file yet."""
    k: int = Field(6, ge=1, le=8)
    """Bases per token (kmer; published ones have their own). bpe: bases per token that windows and bits per base reckon with,
    whatever the tokens are; default 5, what 4,096 tokens have on average."""
    base_order: Literal["ACGT", "ATCG", "AGCT"] = "ACGT"
    """Order of the bases in the vocabulary; published ones have their own."""
    add_bos: bool = True
    """Begin each sample with <bos> (NT: <cls>, GENERator: <s>, AIDO.DNA, bpe: [CLS]), so that its first base is predicted too."""
    add_eos: bool = False
    """Masked objective: end each sample with <eos> (AIDO.DNA, bpe: [SEP], there the default of masked runs)."""

    @model_validator(mode="before")
    @classmethod
    def _published(cls, value: Any) -> Any:
        defaults: dict[str, dict[str, Any]] = {**PUBLISHED_TOKENIZERS, "bpe": {"k": BPE_BASES_PER_TOKEN}}
        published = defaults.get(str(value.get("kind"))) if isinstance(value, dict) else None
        return {**published, **value} if published else value

    @model_validator(mode="after")
    def _as_published(self) -> TokenizerConfig:
        for name in ("k", "base_order"):
            has = PUBLISHED_TOKENIZERS.get(self.kind, {}).get(name, getattr(self, name))
            if getattr(self, name) != has:
                raise ValueError(f"{name} = {getattr(self, name)}, but kind={self.kind} has {has}: remove {name}")
        if self.kind == "bpe" and self.base_order != "ACGT":
            raise ValueError(f"base_order = {self.base_order}, but kind=bpe has the order of its file: remove base_order")
        return self

    @property
    def bases_per_token(self) -> int:
        """Bases of one word; bpe: those that windows reckon with."""
        return 1 if self.kind == "nucleotide" else self.k

    @property
    def is_variable(self) -> bool:
        """True where tokens stand for different numbers of bases, so that only the bases tell how many there are."""
        return self.kind in ("nt_v1", "nt_v2", "aido_dna", "bpe")


ROPE_SCALING: dict[str, dict[str, Any]] = {
    "linear": {},
    "llama3": {"original_max_position_embeddings": None, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"original_max_position_embeddings": None, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None, "truncate": True},
}
"""What each rope_type has beside its factor, with the defaults of transformers; the original context has none."""


class RopeScalingConfig(Section):
    """Rotary embeddings for contexts longer than the model was trained on, with the names and the formulas of transformers."""

    rope_type: Literal["linear", "llama3", "yarn"]
    """linear: positions / factor (Chen et al. 2023). llama3: slow turns / factor, fast ones as they are, between them a mixture.
    yarn: the same idea with other bounds, and sharper attention (Peng et al. 2023)."""
    factor: float = Field(ge=1)
    """How much longer the context becomes."""
    original_max_position_embeddings: int | None = Field(None, gt=0)
    """llama3, yarn: tokens of the context that the model was trained on."""
    low_freq_factor: float | None = Field(None, gt=0)
    """llama3: frequencies of fewer turns than this in the original context are divided by factor; default 1."""
    high_freq_factor: float | None = Field(None, gt=0)
    """llama3: frequencies of more turns than this stay; default 4."""
    beta_fast: float | None = Field(None, gt=0)
    """yarn: frequencies of more turns than this stay; default 32."""
    beta_slow: float | None = Field(None, gt=0)
    """yarn: frequencies of fewer turns than this are divided by factor; default 1."""
    attention_factor: float | None = Field(None, gt=0)
    """yarn: what rotated queries and keys are multiplied by; default 0.1 ln(factor) + 1."""
    truncate: bool | None = None
    """yarn: bounds at whole pairs of channels; default true."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return {**ROPE_SCALING.get(str(value.get("rope_type")), {}), **_given(value)} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits_its_type(self) -> RopeScalingConfig:
        has = {"rope_type", "factor", *ROPE_SCALING[self.rope_type]}
        if extra := [name for name, value in self if value is not None and name not in has]:
            raise ValueError(f"{extra[0]} is not for rope_type={self.rope_type}, which has {', '.join(sorted(has))}: remove it")
        if self.rope_type != "linear" and self.original_max_position_embeddings is None:
            raise ValueError(
                f"rope_type={self.rope_type} needs original_max_position_embeddings, the context that the model was trained on"
            )
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if getattr(self, low) is not None and getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low} = {getattr(self, low)} is not below {high} = {getattr(self, high)}: change one")
        return self


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class ModelConfig(Section):
    """The network: a Llama-style decoder, or an encoder that can be any of the published ones."""

    kind: Literal["decoder", "encoder"] = "decoder"
    """decoder: causal, next token. encoder: sees both sides, learns by `data.masking`, has a masked-LM head."""
    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_query_groups: int | None = Field(None, gt=0)
    """Key/value heads; default: one per attention head."""
    kv_channels: int | None = Field(None, gt=0)
    """Width of one head; default: hidden_size / num_attention_heads."""
    ffn_hidden_size: int = Field(gt=0)
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    norm_epsilon: float = Field(1e-5, gt=0)
    norm_position: Literal["pre", "post"] = "pre"
    """pre: x + f(norm(x)), a final norm after the last layer; post: norm(x + f(x))."""
    activation: Literal["swiglu", "geglu", "gelu"] = "swiglu"
    """Of the feed-forward; the first two multiply two projections. GELU is exact (erf)."""
    attention_bias: bool = False
    """Biases on the query, key, value and output projections."""
    ffn_in_bias: bool = False
    ffn_out_bias: bool = False
    position_embedding_type: Literal["rope", "learned_absolute", "alibi", "none"] = "rope"
    """alibi: symmetric, -slope x distance (Press et al. 2022; slopes in head order, as published for any number of heads)."""
    rotary_base: int = Field(10_000, gt=1)
    """Of the rotary frequencies; a larger one turns slower. May differ from that of the weights in checkpoint.load."""
    rope_scaling: RopeScalingConfig | None = None
    """Stretches the rotary embedding to a longer context (continued pretraining); default: not stretched."""
    max_position_embeddings: int | None = Field(None, gt=0)
    """Longest input in tokens, written into the Hugging Face config; default: data.sequence_length."""
    embedding_norm: bool = False
    """A norm between the embeddings and the first layer."""
    type_vocab_size: int = Field(0, ge=0)
    """Rows of a token-type table, of which row 0 is added to every token (DNABERT-2 has 2)."""
    token_dropout: float = Field(0.0, ge=0, lt=1)
    """ESM's rescaling: <mask> embeds to 0, all words are scaled by (1 - this) / (1 - share of <mask> in the sample); ESM has 0.12."""
    hidden_dropout: float = Field(0.0, ge=0, lt=1)
    """After the embeddings, the attention and the feed-forward."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Of the attention probabilities."""
    ffn_dropout: Literal["output", "inner"] = "output"
    """Where hidden_dropout falls in the feed-forward: on what it adds, or on its inner activation (DNABERT-2)."""
    untie_embeddings_and_output_weights: bool = True
    init_method_std: float = Field(0.02, gt=0)
    transformer_impl: Literal["auto", "transformer_engine", "torch"] = "auto"
    """auto: Transformer Engine where it is installed and CUDA is there, else torch. With data.document_attention always torch."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        """Number of key/value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def has_dropout(self) -> bool:
        """True where anything is dropped in training."""
        return self.hidden_dropout > 0 or self.attention_dropout > 0

    @property
    def is_gated(self) -> bool:
        """True where the feed-forward multiplies two projections."""
        return self.activation != "gelu"


class ParallelConfig(Section):
    """How the model and the batch are spread over ranks. Aliases: tp, pp, vpp, cp."""

    tensor_model_parallel_size: int = Field(1, gt=0)
    pipeline_model_parallel_size: int = Field(1, gt=0)
    virtual_pipeline_model_parallel_size: int | None = Field(None, gt=1)
    """Model chunks per pipeline rank (interleaved schedule)."""
    num_layers_in_first_pipeline_stage: int | None = Field(None, gt=0)
    num_layers_in_last_pipeline_stage: int | None = Field(None, gt=0)
    """Layers of the first and of the last pipeline rank, where num_layers does not divide evenly, or to make up for embeddings and head;
    the ranks between share the rest evenly. Default: as many as the others."""
    context_parallel_size: int = Field(1, gt=0)
    """Ranks that share each sample, a part of its sequence each; they hold the same weights."""
    cp_comm_type: Literal["p2p", "all_gather", "a2a"] = "p2p"
    """How Transformer Engine's attention sees the others' parts. p2p: keys and values pass round a ring while it works. all_gather: they
    are gathered first, as the torch layers always do. a2a: a rank gets all of the sequence for some heads (as many on each)."""
    sequence_parallel: bool = False
    """Shard activations between tensor-parallel regions along the sequence."""
    use_distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass runs (CUDA)."""
    overlap_param_gather: bool = False
    """Gather parameters while the forward pass runs (CUDA, distributed optimizer)."""
    tp_comm_overlap: bool = False
    """Overlap tensor-parallel communication with matrix products, through user buffers (Transformer Engine, sequence_parallel)."""
    batch_p2p_comm: bool | None = None
    """Send and receive between pipeline stages in one batch. Default: yes without virtual stages; with them never, for the messages of
    the interleaved schedule are overlapped with its computation instead."""
    overlap_p2p_comm_warmup_flush: bool = False
    """Overlap them in the warm-up and the flush of the interleaved schedule too."""
    distributed_timeout_minutes: float = Field(40.0, gt=0)
    """A rank that waits longer for others ends the run with an error; longer than checkpoint.timeout_seconds."""

    @property
    def model_parallel_size(self) -> int:
        """Ranks that work on a sample together: all but data parallelism."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    def layers_on_ranks(self, num_layers: int) -> list[int] | None:
        """Layers on each pipeline rank, virtual stages together; None where they cannot be spread so."""
        pp, ends = self.pipeline_model_parallel_size, (self.num_layers_in_first_pipeline_stage, self.num_layers_in_last_pipeline_stage)
        if pp == 1:
            return [num_layers] if ends == (None, None) else None
        rest, others = num_layers - sum(end or 0 for end in ends), pp - sum(end is not None for end in ends)
        if rest < others or (rest % others if others else rest):
            return None
        each = rest // others if others else 0
        layers = [ends[0] or each, *[each] * (pp - 2), ends[1] or each]
        return None if any(count % (self.virtual_pipeline_model_parallel_size or 1) for count in layers) else layers


class OptimConfig(Section):
    """AdamW and its schedule. Weight decay skips norms and biases."""

    lr: float = Field(gt=0)
    min_lr: float = Field(0.0, ge=0)
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = "cosine"
    lr_warmup_steps: int = Field(0, ge=0)
    lr_warmup_init: float = Field(0.0, ge=0)
    """Learning rate at step 0 of the warm-up."""
    lr_decay_steps: int | None = Field(None, gt=0)
    """Step at which the decay ends; default: train.train_steps."""
    lr_wsd_decay_steps: int | None = Field(None, gt=0)
    """Length of WSD's final decay in steps; default: a tenth of the decay steps."""
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "linear"
    weight_decay: float = Field(0.1, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    clip_grad: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 turns clipping off."""


class TrainConfig(Section):
    """Length, batch, precision and evaluation of the run."""

    run_dir: Path
    """Folder of this run: config, log, checkpoints, report."""
    train_steps: int = Field(gt=0)
    stop_at_step: int | None = Field(None, gt=0)
    """Stop here with a checkpoint; the schedule still runs to train_steps, so a later start goes on as if nothing had stopped."""
    exit_duration: float | None = Field(None, gt=0)
    """Stop with a checkpoint after so long: seconds, or text such as 3h50m, 90s, 03:50:00. Checked after each step."""
    slurm_margin: float = Field(180.0, ge=0)
    """Stop with a checkpoint so long before the Slurm job's time is up: time for a step and a save. Seconds or text, as exit_duration."""
    micro_batch_size: int = Field(gt=0)
    """Samples per forward pass on one data-parallel rank."""
    global_batch_size: int = Field(gt=0)
    """Samples per step over all data-parallel ranks."""
    rampup_batch_size: tuple[int, int, int] | None = None
    """[start, increment, samples]: begin with batches of `start` samples and add `increment` at even distances over the first
    `samples` samples, up to global_batch_size. Numbers of steps stay steps; the schedule between them runs in samples."""
    loss: Literal["token", "nucleotide"] = "token"
    """What a target costs, next token or masked. token: cross-entropy of the whole token. nucleotide, for tokenizer.kind=kmer and
    generator: each base of a k-mer by its marginal probability (GENERator v2's factorised nucleotide supervision), in nats per base."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 keeps fp32 main weights, gradients and optimizer state."""
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """Matrix products of the layers in FP8 (Transformer Engine; precision=bf16 for all else: attention, norms, embeddings, head).
    hybrid: E4M3 forward, E5M2 for gradients. e4m3: E4M3 in both directions."""
    fp8_recipe: Literal["tensorwise", "delayed", "blockwise", "mxfp8"] = "tensorwise"
    """Where scales come from. tensorwise: the tensor itself. delayed: the largest values of earlier steps, which no checkpoint holds: a
    resumed run measures them anew. blockwise: blocks of 128 (Hopper, CUDA 12.9). mxfp8: blocks of 32 (Blackwell)."""
    fp8_amax_history_len: int | None = Field(None, gt=0)
    """delayed: steps that the largest values are remembered for; default 1024."""
    fp8_amax_compute_algo: Literal["max", "most_recent"] | None = None
    """delayed: which of them makes the scale; default max."""
    first_last_layers_bf16: bool = False
    """Keep the first and the last layers in bf16 where fp8 is on; not with delayed scaling."""
    num_layers_at_start_in_bf16: int = Field(1, ge=0)
    num_layers_at_end_in_bf16: int = Field(1, ge=0)
    """How many, with first_last_layers_bf16."""
    attention_backend: Literal["auto", "flash", "fused", "unfused"] = "auto"
    """Kernels of Transformer Engine's attention: flash-attn, cuDNN's fused ones, its own unfused ones; auto: it chooses."""
    apply_rope_fusion: bool = False
    """Rotate queries and keys in one kernel of Transformer Engine's; it cannot multiply by YaRN's attention factor."""
    bias_activation_fusion: bool = False
    """SwiGLU, with the bias before it, in one compiled kernel that keeps its input only."""
    cross_entropy_loss_fusion: bool = False
    """Cross-entropy in fewer kernels: those of cross_entropy_fusion_impl."""
    cross_entropy_fusion_impl: Literal["native", "te"] = "native"
    """native: Megatron-core's compiled functions (gradient in bf16). te: Transformer Engine's Triton kernel."""
    gradient_accumulation_fusion: bool = False
    """Add weight gradients to the fp32 sums within the matrix product: Transformer Engine's layers, or Apex's extension."""
    cuda_graph_impl: Literal["none", "local", "transformer_engine"] = "none"
    """Capture each layer as a CUDA graph, by Megatron-core (local) or by Transformer Engine. For decoders without dropout, on one pipeline
    stage, with samples of one length."""
    cuda_graph_warmup_steps: int = Field(3, ge=1)
    """Passes before the capture: of each layer (local), or steps of training (transformer_engine)."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Recompute activations in the backward pass: attention only (selective) or whole layers (full)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 1234
    """Key of the initial weights."""
    eval_interval: int = Field(0, ge=0)
    """Steps between evaluations on the held-out sets; 0: only at the end."""
    eval_samples: int | None = Field(None, gt=0)
    """Samples, spread evenly over each held-out set, in the evaluations on the way (the last one uses all); default: all."""
    on_bad_step: Literal["stop", "skip", "rewind"] = "skip"
    """What happens where loss or gradient norm are not finite or a spike. stop: end with an error, saved as before the step. skip: no
    update, on to the next samples. rewind: back to the weights of the newest checkpoint, on with the samples after the bad ones."""
    loss_spike_sigmas: float = Field(0.0, ge=0)
    """A step is bad whose loss exceeds the median of the last spike_window good steps by so many standard deviations (1.4826 x the
    median absolute deviation); 0: off. 6 is usual."""
    grad_norm_spike_factor: float = Field(0.0, ge=0)
    """A step is bad whose gradient norm, before clipping, exceeds so many times the median of these steps; 0: off."""
    spike_window: int = Field(128, ge=2)
    """Good steps that spikes are measured against; until a stage of the data has made so many, nothing is a spike."""
    max_bad_steps: int = Field(10, ge=1)
    """End with an error when more than so many of the last spike_window steps were bad; with rewind, of at least the last
    checkpoint.save_interval steps."""
    check_weight_hash_across_dp_replicas_interval: int = Field(0, ge=0)
    """Steps between comparisons of the weights on all data-parallel ranks, by digests; 0: never. A difference ends the run."""
    deterministic: bool = False
    """Use only CUDA kernels whose results do not change from run to run, and refuse others; slower. On CPU it changes nothing."""

    @field_validator("exit_duration", "slurm_margin", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return parse_seconds(value) if isinstance(value, str) else value


class CheckpointConfig(Section):
    """When checkpoints are written and what a run starts from."""

    save_interval: int = Field(0, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    resume: bool = True
    """Continue from the newest checkpoint of the run folder when there is one."""
    load: Path | None = None
    """Checkpoint whose weights a new run starts from (weights only: continued pretraining). Its context may be shorter, its rotary
    embedding another, and its vocabulary the beginning of this one: new rows are the mean of the old ones."""
    async_save: bool = True
    """Train on while the files are written, from a copy in host memory; false: wait for each save."""
    timeout_seconds: float = Field(1800.0, gt=0)
    """A save that takes longer has failed. The run goes on and tries again; where it cannot go on by itself it ends with an error."""
    keep_last: int | None = Field(None, ge=1)
    """Keep so many of the newest checkpoints and delete older ones; default: keep all. keep_every and keep_best keep more."""
    keep_every: int | None = Field(None, ge=1)
    """Keep checkpoints whose step is a multiple of this, whatever keep_last says."""
    keep_best: int | None = Field(None, ge=1)
    """Keep so many with the lowest held-out loss (the set 'valid', else the first), whatever keep_last says."""
    local_dir: Path | None = None
    """Folder on each node's own disk, variables such as $TMPDIR replaced there: every checkpoint is copied into it in the background, and
    a resume reads a node's copy instead of the run folder where it is whole and the same."""
    keep_local: int = Field(1, ge=1)
    """Copies that a node keeps in local_dir."""


class LogConfig(Section):
    """What is printed and written while the run goes."""

    log_interval: int = Field(10, gt=0)
    """Steps between console lines; the JSON-lines log has every step."""
    console: Literal["lines", "json", "quiet"] = "lines"
    """lines: for people. json: every record of the log, one JSON object per line. quiet: nothing but errors. `log.jsonl` is the same."""
    tensorboard: bool = False
    """Write for TensorBoard too, into RUN/tensorboard (pip install 'dnapretrain[tensorboard]')."""
    wandb_project: str | None = None
    """Send to this project of Weights & Biases too (pip install 'dnapretrain[wandb]'); the run has the name of its folder."""
    wandb_mode: Literal["online", "offline"] = "online"
    """offline: into RUN/wandb, to be sent with `wandb sync`, where compute nodes have no network."""
    peak_tflops: float | None = Field(None, gt=0)
    """Peak of one rank that MFU is measured against; default: the data sheet's, by the GPU's name; none on CPU."""
    straggler_factor: float = Field(1.5, ge=0)
    """Name the slowest rank with each console line where its own work takes longer than so many times the median; 0: never."""
    heartbeat_seconds: float = Field(10.0, ge=0)
    """Seconds between two states of heartbeat.json in the run folder; 0: none."""
    hang_seconds: float = Field(600.0, ge=0)
    """A rank that does not get on for so long writes its stack to hangs/ in the run folder, and says so; 0: never. Training goes on."""


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


def parse_seconds(text: str) -> float | str:
    """Seconds of '3h50m', '90s', '1d', '03:50:00' or '2-00:00:00'; `text` itself where it is none of them."""
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text.strip())
    match = units if units and text.strip() else clock
    if match is None:
        return text
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def padded_vocab_size(vocab_size: int) -> int:
    """`vocab_size` rounded up to a multiple of VOCAB_MULTIPLE."""
    return math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
