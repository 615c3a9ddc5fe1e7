"""The rules between settings, all in one place: each message names the values and the key to change.

`check_rules` holds whatever the number of ranks; `check_world` needs to know it.
"""

from __future__ import annotations

from dnapretrain.config import VOCAB_MULTIPLE, RunConfig, SplitConfig
from dnapretrain.config_kernel_rules import check_kernel_rules
from dnapretrain.errors import ConfigError


def _divides(what: str, value: int, by_what: str, by: int, way_out: str) -> None:
    if value % by:
        raise ConfigError(f"{what} = {value} is not divisible by {by_what} = {by}. {way_out}")


DECODER_HAS = {
    "normalization": "RMSNorm",
    "norm_position": "pre",
    "activation": "swiglu",
    "attention_bias": False,
    "ffn_in_bias": False,
    "ffn_out_bias": False,
    "position_embedding_type": "rope",
    "embedding_norm": False,
    "type_vocab_size": 0,
    "token_dropout": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "ffn_dropout": "output",
}
"""Settings that only encoders can choose, and what a decoder has."""


def check_rules(config: RunConfig) -> None:
    """Rules between settings that hold whatever the number of ranks."""
    model, parallel, train, split = config.model, config.parallel, config.train, config.data.split
    tp = parallel.tensor_model_parallel_size
    if model.kv_channels is None:
        _divides(
            "model.hidden_size", model.hidden_size, "model.num_attention_heads", model.num_attention_heads, "Or set model.kv_channels."
        )
    if model.head_dim % 2 and model.position_embedding_type == "rope":
        raise ConfigError(f"the head width {model.head_dim} is odd; rotary embeddings turn pairs. Set model.kv_channels to an even number.")
    _divides("model.num_attention_heads", model.num_attention_heads, "model.num_query_groups", model.query_groups, "Change one of the two.")
    tp_name, tp_out = "parallel.tensor_model_parallel_size", "Change parallel.tensor_model_parallel_size."
    _divides("model.num_attention_heads", model.num_attention_heads, tp_name, tp, tp_out)
    _divides("model.num_query_groups", model.query_groups, tp_name, tp, tp_out)
    _divides("model.ffn_hidden_size", model.ffn_hidden_size, tp_name, tp, tp_out)
    _divides("the padded vocabulary", VOCAB_MULTIPLE, tp_name, tp, f"It divides {VOCAB_MULTIPLE}: use 1, 2, 4, 8 or 16.")
    _check_pipeline(config)
    if parallel.sequence_parallel:
        if tp == 1:
            raise ConfigError("parallel.sequence_parallel needs parallel.tensor_model_parallel_size of at least 2. Set it to false.")
        for name, length in _lengths(config):
            _divides(name, length, tp_name, tp, "sequence_parallel shards the sequence: change one of the two.")
    _check_context_parallel(config)
    if parallel.overlap_param_gather and not parallel.use_distributed_optimizer:
        raise ConfigError("parallel.overlap_param_gather needs parallel.use_distributed_optimizer=true.")
    for name, length in _lengths(config):
        if config.max_positions < length:
            raise ConfigError(f"{name} = {length} exceeds model.max_position_embeddings = {config.max_positions}. Change one.")
    _divides("train.global_batch_size", train.global_batch_size, "train.micro_batch_size", train.micro_batch_size, "Change one of the two.")
    if config.optim.min_lr > config.optim.lr:
        raise ConfigError(f"optim.min_lr = {config.optim.min_lr} exceeds optim.lr = {config.optim.lr}. Lower it.")
    if config.optim.lr_warmup_steps >= config.lr_decay_steps:
        raise ConfigError(
            f"optim.lr_warmup_steps = {config.optim.lr_warmup_steps} leaves nothing of the {config.lr_decay_steps} decay steps. Lower it."
        )
    if config.optim.lr_wsd_decay_steps and config.optim.lr_decay_style != "WSD":
        raise ConfigError(f"optim.lr_wsd_decay_steps is for optim.lr_decay_style=WSD, not {config.optim.lr_decay_style}. Remove it.")
    if (config.optim.lr_wsd_decay_steps or 0) > config.lr_decay_steps:
        raise ConfigError(
            f"optim.lr_wsd_decay_steps = {config.optim.lr_wsd_decay_steps} exceeds the {config.lr_decay_steps} decay steps. Lower it."
        )
    _check_rope_scaling(config)
    _check_windows(config)
    _check_document_attention(config)
    _check_tokenizer(config)
    _check_objective(config)
    _check_rampup(config)
    _check_split(split)
    _check_probes(config)
    _check_stages(config)
    _check_keeping(config)
    _check_watching(config)
    check_kernel_rules(config)


def _check_pipeline(config: RunConfig) -> None:
    model, parallel = config.model, config.parallel
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if vpp and pp < 2:
        raise ConfigError(
            f"parallel.virtual_pipeline_model_parallel_size = {vpp} needs parallel.pipeline_model_parallel_size of at least 2."
        )
    names = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
    ends = [f"{name} = {getattr(parallel, name)}" for name in names if getattr(parallel, name)]
    if ends and pp < 2:
        raise ConfigError(f"parallel.{ends[0]} needs parallel.pipeline_model_parallel_size of at least 2. Remove it.")
    if parallel.layers_on_ranks(model.num_layers):
        return
    stages = pp * (vpp or 1)
    if not ends:
        uneven = "" if vpp else f", or set parallel.{names[0]} and {names[1]}"
        way_out = f"Change parallel.pipeline_model_parallel_size{uneven}."
        _divides("model.num_layers", model.num_layers, "pipeline stages", stages, way_out)
    chunks = f" of {vpp} chunks each" if vpp else ""
    raise ConfigError(
        f"model.num_layers = {model.num_layers} cannot be spread over {pp} pipeline ranks{chunks} with parallel.{' and '.join(ends)}: "
        "the ranks between must share the rest evenly, at least one layer each. Change one of them."
    )


def _check_context_parallel(config: RunConfig) -> None:
    parallel, cp = config.parallel, config.parallel.context_parallel_size
    if cp == 1:
        return
    name, parts = "2 x parallel.context_parallel_size", 2 * cp
    if parallel.sequence_parallel:
        name, parts = f"{name} x tensor_model_parallel_size (sequence_parallel)", parts * parallel.tensor_model_parallel_size
    for length_name, length in _lengths(config):
        _divides(length_name, length, name, parts, "Each rank takes two equal parts of every sample: change one of the two.")
    if config.train.cuda_graph_impl != "none":
        raise ConfigError(
            f"train.cuda_graph_impl={config.train.cuda_graph_impl} records a layer, and with parallel.context_parallel_size = {cp} layers "
            "send messages while they compute. Set it to none."
        )
    if config.torch_only and not config.data.document_attention and config.model.transformer_impl == "transformer_engine":
        raise ConfigError(
            f"{config.torch_only}: parallel.context_parallel_size = {cp}, and model.transformer_impl=transformer_engine. "
            "Set model.transformer_impl=torch (or auto, which is torch then)."
        )


def _check_rope_scaling(config: RunConfig) -> None:
    model = config.model
    if model.rope_scaling and model.position_embedding_type != "rope":
        raise ConfigError(
            f"model.rope_scaling is for position_embedding_type=rope, not {model.position_embedding_type}. Remove it; learned positions "
            "cannot be stretched, and ALiBi needs nothing."
        )


def _lengths(config: RunConfig) -> list[tuple[str, int]]:
    """The key and value of each length of samples in tokens."""
    stages = enumerate(config.data.stages, 1)
    of_stages = [(f"sequence_length of stage {number} of data.stages", stage.sequence_length) for number, stage in stages]
    return [("data.sequence_length", config.data.sequence_length), *((name, length) for name, length in of_stages if length)]


def _check_windows(config: RunConfig) -> None:
    data, tokenizer, window = config.data, config.tokenizer, config.data.window_length
    lengths = sorted({data.sequence_length, *data.training_lengths})
    for name in ("stride", "window_length"):
        if len(lengths) > 1 and getattr(data, name):
            raise ConfigError(
                f"data.{name} = {getattr(data, name)} bases is for samples of one length; those here have {lengths} tokens. Remove it: "
                "windows then touch, and are as long as their tokens."
            )
    if data.sampling == "packed":
        for name in ("stride", "window_length", "window_jitter"):
            if getattr(data, name):
                raise ConfigError(f"data.{name} is for data.sampling=windows; packed samples have none. Remove data.{name}.")
    elif data.pack_order != "document":
        raise ConfigError(f"data.pack_order={data.pack_order} is for data.sampling=packed. Remove it.")
    if window is None:
        return
    k, special = tokenizer.bases_per_token, (tokenizer.add_bos + tokenizer.add_eos if config.is_masked else 0)
    context = 0 if config.is_masked or tokenizer.add_bos else 1
    most, least = (data.sequence_length - special + context) * k, context * k + (1 if tokenizer.is_variable else k)
    if not least <= window <= most:
        raise ConfigError(
            f"data.window_length = {window} is not {least} to {most} bases, which {data.sequence_length} tokens stand for. Change one."
        )
    if not tokenizer.is_variable:
        _divides("data.window_length", window, "the bases of a token", k, "Windows are read in whole tokens: change it.")


def _check_document_attention(config: RunConfig) -> None:
    if not config.data.document_attention:
        return
    if config.data.sampling != "packed":
        raise ConfigError(
            f"data.document_attention is for data.sampling=packed, not {config.data.sampling}, where a sample lies within one document. "
            "Remove it, or set data.sampling=packed."
        )
    if config.model.transformer_impl == "transformer_engine":
        raise ConfigError(
            "data.document_attention masks on the torch path only, and model.transformer_impl=transformer_engine. "
            "Set model.transformer_impl=torch (or auto, which is torch then)."
        )
    if config.model.token_dropout:
        raise ConfigError(
            f"model.token_dropout = {config.model.token_dropout} rescales words by the share of <mask> in the whole sample, so that "
            "documents would not be independent. Set it to 0, or data.document_attention to false."
        )


def _check_tokenizer(config: RunConfig) -> None:
    tokenizer, data = config.tokenizer, config.data
    if tokenizer.kind == "bpe" and tokenizer.file is None:
        raise ConfigError("tokenizer.kind=bpe needs its merges. Set tokenizer.file to a tokenizer.json; dnapretrain train-bpe makes one.")
    if tokenizer.kind != "bpe" and tokenizer.vocab_size is not None:
        raise ConfigError(f"tokenizer.vocab_size = {tokenizer.vocab_size} is for tokenizer.kind=bpe, not {tokenizer.kind}. Remove it.")
    if tokenizer.kind != "bpe" and tokenizer.file is not None:
        raise ConfigError(f"tokenizer.file = {tokenizer.file} is for tokenizer.kind=bpe, not {tokenizer.kind}. Remove it.")
    if data.random_phase and tokenizer.kind != "kmer" and tokenizer.bases_per_token == 1:
        raise ConfigError(f"data.random_phase is for tokenizer.kind=kmer, not {tokenizer.kind}. Set it to false.")
    if tokenizer.is_variable and data.sampling == "packed":
        raise ConfigError(
            f"data.sampling=packed needs tokens of a fixed number of bases, which tokenizer.kind={tokenizer.kind} has not. "
            "Set data.sampling=windows."
        )
    if not tokenizer.add_eos:
        return
    if tokenizer.kind in ("nt_v1", "nt_v2"):
        raise ConfigError(f"tokenizer.add_eos: tokenizer.kind={tokenizer.kind} ends samples with no token. Set it to false.")
    if not config.is_masked:
        raise ConfigError("tokenizer.add_eos is for the masked objective (model.kind=encoder). Set it to false.")
    for name, length in _lengths(config):
        if length < 2 + tokenizer.add_bos:
            raise ConfigError(f"{name} = {length} leaves no token for bases between the two ends of a sample. Raise it.")


def _check_objective(config: RunConfig) -> None:
    model, masking, tokenizer = config.model, config.data.masking, config.tokenizer
    if config.train.loss == "nucleotide" and (tokenizer.is_variable or tokenizer.bases_per_token == 1):
        has = "one base per token" if tokenizer.bases_per_token == 1 else "tokens of different lengths"
        raise ConfigError(
            f"train.loss=nucleotide counts the bases of k-mers; tokenizer.kind={tokenizer.kind} has {has}. "
            "Set train.loss=token, or tokenizer.kind=kmer (k of at least 2) or generator."
        )
    if model.kind == "decoder":
        for name, only in DECODER_HAS.items():
            if getattr(model, name) != only:
                raise ConfigError(f"model.{name} = {getattr(model, name)} is for model.kind=encoder; a decoder has {only}. Remove it.")
        if masking.mlm_probability:
            raise ConfigError(
                f"data.masking.mlm_probability = {masking.mlm_probability} is for model.kind=encoder; a decoder predicts the next token. "
                "Set it to 0, or change model.kind."
            )
        if masking.span_length > 1:
            raise ConfigError(f"data.masking.span_length = {masking.span_length} is for model.kind=encoder. Remove it.")
        return
    if not masking.mlm_probability:
        raise ConfigError("model.kind=encoder learns by masking. Set data.masking.mlm_probability, usually 0.15.")
    if masking.mask_replace_prob + masking.random_replace_prob > 1:
        raise ConfigError(
            f"data.masking.mask_replace_prob = {masking.mask_replace_prob} and random_replace_prob = {masking.random_replace_prob} are "
            "shares of the chosen tokens and exceed 1 together. Lower one."
        )
    for name, length in _lengths(config):
        if masking.span_length > length:
            raise ConfigError(f"data.masking.span_length = {masking.span_length} exceeds {name} = {length}. Lower it.")
    if model.ffn_dropout == "inner" and not model.hidden_dropout:
        raise ConfigError("model.ffn_dropout=inner says where model.hidden_dropout falls, which is 0. Set one of the two.")


def _check_rampup(config: RunConfig) -> None:
    if config.train.rampup_batch_size is None:
        return
    start, increment, samples = config.train.rampup_batch_size
    full = config.train.global_batch_size
    if not (0 < start < full and increment > 0 and samples > 0):
        raise ConfigError(
            f"train.rampup_batch_size = {[start, increment, samples]}: [start, increment, samples] must be positive and start below "
            f"train.global_batch_size = {full}."
        )
    _divides(f"train.global_batch_size - start = {full} - {start}", full - start, "increment", increment, "Change train.rampup_batch_size.")
    for name, size in (("start", start), ("increment", increment)):
        micro = config.train.micro_batch_size
        _divides(f"train.rampup_batch_size {name}", size, "train.micro_batch_size", micro, "Change one of the two.")


def _check_split(split: SplitConfig) -> None:
    given = {
        "contig": bool(split.valid_contigs or split.test_contigs),
        "bed": bool(split.valid_bed or split.test_bed),
        "cluster" if split.by == "cluster" else "block": bool(split.valid_fraction or split.test_fraction),
    }
    if (split.clusters is not None) != (split.by == "cluster"):
        way = "Give a file that dnapretrain cluster wrote" if split.by == "cluster" else "Set data.split.by=cluster, or remove it"
        raise ConfigError(f"data.split.clusters = {split.clusters} but data.split.by is '{split.by}'. {way}.")
    of_share = {"valid_fraction": "0", "test_fraction": "0"}
    cleared = {
        "contig": {"valid_contigs": "[]", "test_contigs": "[]"},
        "bed": {"valid_bed": "null", "test_bed": "null"},
        "block": of_share,
        "cluster": of_share,
    }
    for rule, is_given in given.items():
        if is_given and split.by != rule:
            keys = [f"data.split.{key}={empty}" for key, empty in cleared[rule].items() if getattr(split, key)]
            raise ConfigError(
                f"data.split has settings for rule '{rule}' but data.split.by is '{split.by}'. "
                f"Set data.split.by={rule}, or {' '.join(keys)}."
            )
    if split.by != "none" and not given[split.by]:
        needs = {"contig": "valid_contigs", "bed": "valid_bed", "block": "valid_fraction", "cluster": "valid_fraction"}[split.by]
        raise ConfigError(f"data.split.by={split.by} holds nothing out. Set data.split.{needs}.")
    if split.valid_fraction + split.test_fraction >= 1:
        raise ConfigError("data.split.valid_fraction + data.split.test_fraction leave nothing to train on. Lower them.")


def _check_probes(config: RunConfig) -> None:
    probes = config.data.probes
    if (probes.genome is None) != (probes.annotation is None):
        given, lacks = ("genome", "annotation") if probes.annotation is None else ("annotation", "genome")
        raise ConfigError(f"data.probes.{given} = {getattr(probes, given)} without data.probes.{lacks}. Set both, or none.")
    if not probes.is_active:
        return
    least, most, window = max(24, 6 * config.probe_word), config.longest_probe_window, probes.window_length or config.probe_window
    if not least <= window <= most:
        key = "data.probes.window_length" if probes.window_length else "the window of data.probes"
        raise ConfigError(
            f"{key} = {window} is not {least} to {most} bases: a site with some bases around it, and what {config.data.sequence_length} "
            "tokens stand for. Change it, or data.sequence_length."
        )


def _check_stages(config: RunConfig) -> None:
    stages, sources = config.data.stages, config.data.train
    end = 0
    for number, (stage, by_samples) in enumerate(zip(stages, config.data_by_samples().stages, strict=True), 1):
        name = f"stage {number} of data.stages"
        if number == len(stages):
            if stage.until_step or stage.until_samples:
                raise ConfigError(f"{name} is the last one and goes on to the end of the run. Remove its end, or add a stage behind it.")
        elif (stage.until_step is None) == (stage.until_samples is None):
            raise ConfigError(f"{name} needs an end. Give one of until_step and until_samples.")
        elif (by_samples.until_samples or 0) <= end:
            raise ConfigError(
                f"{name} ends at sample {by_samples.until_samples}, where the one before it has ended already ({end}). Raise it."
            )
        end = by_samples.until_samples or 0
        _check_length_begins_a_step(config, number, end)
        if stage.weights is not None and len(stage.weights) != len(sources):
            raise ConfigError(f"{name} has {len(stage.weights)} weights for the {len(sources)} sources of data.train. Give one for each.")
        if stage.weights is not None and not any(stage.weights):
            raise ConfigError(f"{name} has no weight above 0. Raise one.")
    for number, source in enumerate(sources):
        if stages and not any(stage.weights is None or stage.weights[number] for stage in stages):
            raise ConfigError(f"source {source.prefix} of data.train has weight 0 in every stage of data.stages. Remove it, or raise one.")


def _check_watching(config: RunConfig) -> None:
    train, checkpoint = config.train, config.checkpoint
    if train.on_bad_step == "rewind" and not checkpoint.save_interval:
        raise ConfigError(
            "train.on_bad_step=rewind goes back to the newest checkpoint, but checkpoint.save_interval = 0 writes one only at the end. "
            "Set it."
        )
    minutes = config.parallel.distributed_timeout_minutes
    if minutes * 60 <= checkpoint.timeout_seconds:
        raise ConfigError(
            f"parallel.distributed_timeout_minutes = {minutes:g} is no longer than checkpoint.timeout_seconds = "
            f"{checkpoint.timeout_seconds:g}: ranks that wait for a slow save would end the run. Raise the one or lower the other."
        )


def _check_keeping(config: RunConfig) -> None:
    keep, train = config.checkpoint, config.train
    for name in ("keep_every", "keep_best"):
        if getattr(keep, name) and not keep.keep_last:
            raise ConfigError(
                f"checkpoint.{name} = {getattr(keep, name)} says what is kept beside checkpoint.keep_last, which keeps all. Set it."
            )
    if keep.keep_every and keep.save_interval and keep.keep_every % keep.save_interval:
        raise ConfigError(
            f"checkpoint.keep_every = {keep.keep_every} is no multiple of checkpoint.save_interval = {keep.save_interval}: "
            "few or no checkpoints are written at such steps. Change one."
        )
    if not keep.keep_best:
        return
    if not train.eval_interval or not keep.save_interval or keep.save_interval % train.eval_interval:
        raise ConfigError(
            f"checkpoint.keep_best = {keep.keep_best} compares checkpoints by the evaluation at their step, but checkpoint.save_interval = "
            f"{keep.save_interval} is no multiple of train.eval_interval = {train.eval_interval}. Change one of the two."
        )
    if config.data.split.by == "none" and not config.data.valid:
        raise ConfigError(f"checkpoint.keep_best = {keep.keep_best}, but nothing is held out. Set data.split or data.valid.")


def _check_length_begins_a_step(config: RunConfig, number: int, end: int) -> None:
    lengths = config.data.training_lengths
    steps, over = config.steps_before(end)
    if number < len(lengths) and lengths[number - 1] != lengths[number] and over:
        near = " or ".join(str(config.samples_after(count)) for count in (steps, steps + 1) if count)
        raise ConfigError(
            f"stage {number} of data.stages ends at sample {end}, within step {steps + 1}, where the length changes from "
            f"{lengths[number - 1]} to {lengths[number]} tokens: a step has samples of one. Use until_step, or until_samples={near}."
        )


def check_world(config: RunConfig, world_size: int) -> int:
    """Check that the layout fits `world_size` ranks; return the data-parallel size."""
    parallel, train = config.parallel, config.train
    model_parallel = parallel.model_parallel_size
    if world_size % model_parallel:
        cp = parallel.context_parallel_size
        raise ConfigError(
            f"{world_size} rank(s) cannot hold tensor parallel {parallel.tensor_model_parallel_size} x pipeline parallel "
            f"{parallel.pipeline_model_parallel_size}{f' x context parallel {cp}' if cp > 1 else ''} = {model_parallel} ranks per model "
            f"copy. Start a multiple of {model_parallel} ranks."
        )
    data_parallel = world_size // model_parallel
    per_pass = train.micro_batch_size * data_parallel
    start, increment, _ = train.rampup_batch_size or (train.global_batch_size, 0, 0)
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    names = ("train.global_batch_size", "train.rampup_batch_size start", "train.rampup_batch_size increment")
    for name, size in zip(names, (train.global_batch_size, start, increment), strict=True):
        if size % per_pass:
            raise ConfigError(
                f"{name} = {size} is not divisible by train.micro_batch_size x data-parallel size = "
                f"{train.micro_batch_size} x {data_parallel} = {per_pass}. Change one of them."
            )
        if vpp and (size // per_pass) % pp:
            raise ConfigError(
                f"{name}: {size // per_pass} micro-batches per step do not divide into groups of {pp} pipeline ranks, which the "
                "interleaved schedule needs. Change train.global_batch_size or train.micro_batch_size."
            )
    return data_parallel
