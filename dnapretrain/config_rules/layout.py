"""Rules between the network and the ranks that share it."""

from __future__ import annotations

from dnapretrain.config import VOCAB_MULTIPLE, RunConfig
from dnapretrain.config_rules.shared import divides, sample_lengths
from dnapretrain.errors import ConfigError


def check_layout(config: RunConfig) -> None:
    """Raise ConfigError for a network that its ranks cannot share evenly."""
    model, parallel = config.model, config.parallel
    tp = parallel.tensor_model_parallel_size
    if model.kv_channels is None:
        divides("model.hidden_size", model.hidden_size, "model.num_attention_heads", model.num_attention_heads, "Or set model.kv_channels.")
    if model.head_dim % 2 and model.position_embedding_type == "rope":
        raise ConfigError(f"the head width {model.head_dim} is odd; rotary embeddings turn pairs. Set model.kv_channels to an even number.")
    divides("model.num_attention_heads", model.num_attention_heads, "model.num_query_groups", model.query_groups, "Change one of the two.")
    tp_name, tp_out = "parallel.tensor_model_parallel_size", "Change parallel.tensor_model_parallel_size."
    divides("model.num_attention_heads", model.num_attention_heads, tp_name, tp, tp_out)
    divides("model.num_query_groups", model.query_groups, tp_name, tp, tp_out)
    divides("model.ffn_hidden_size", model.ffn_hidden_size, tp_name, tp, tp_out)
    divides("the padded vocabulary", VOCAB_MULTIPLE, tp_name, tp, f"It divides {VOCAB_MULTIPLE}: use 1, 2, 4, 8 or 16.")
    _check_pipeline(config)
    if parallel.sequence_parallel:
        if tp == 1:
            raise ConfigError("parallel.sequence_parallel needs parallel.tensor_model_parallel_size of at least 2. Set it to false.")
        for name, length in sample_lengths(config):
            divides(name, length, tp_name, tp, "sequence_parallel shards the sequence: change one of the two.")
    _check_context_parallel(config)
    if parallel.overlap_param_gather and not parallel.use_distributed_optimizer:
        raise ConfigError("parallel.overlap_param_gather needs parallel.use_distributed_optimizer=true.")


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
        divides("model.num_layers", model.num_layers, "pipeline stages", stages, way_out)
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
    for length_name, length in sample_lengths(config):
        divides(length_name, length, name, parts, "Each rank takes two equal parts of every sample: change one of the two.")
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
