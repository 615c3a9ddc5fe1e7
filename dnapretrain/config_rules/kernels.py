"""Rules between the settings of kernels: FP8, fused kernels, CUDA graphs, overlapped communication. What must hold on any machine;
what this machine can do is `model.kernels.check_kernels`."""

from __future__ import annotations

import math

from dnapretrain.config import RunConfig
from dnapretrain.errors import ConfigError

FP8_SIDES = {"tensorwise": 16, "delayed": 16, "blockwise": 16, "mxfp8": 32}
"""What the sides of FP8 matrices are multiples of, by recipe: cuBLAS's 16 values (bytes), MXFP8's blocks."""
BLOCK_SIDE = 128
"""Of blockwise scaling: matrices that tensor-parallel ranks gather in FP8 are cut at whole blocks."""


def check_kernel_rules(config: RunConfig) -> None:
    """Raise ConfigError for settings of kernels that cannot work together, or that nothing would read."""
    _check_fp8(config)
    _check_fusions(config)
    _check_cuda_graphs(config)
    _check_communication(config)
    _check_cp_comm_type(config)
    if config.train.attention_backend != "auto":
        _needs_te_layers(config, f"train.attention_backend={config.train.attention_backend}", "Set it to auto.")


def _needs_te_layers(config: RunConfig, what: str, way_out: str) -> None:
    if config.model.transformer_impl == "torch":
        raise ConfigError(f"{what} is for the layers of Transformer Engine, and model.transformer_impl=torch. {way_out}")
    if config.data.document_attention:
        raise ConfigError(f"{what} is for the layers of Transformer Engine; data.document_attention=true takes torch's. {way_out}")


def _check_fp8(config: RunConfig) -> None:
    train, model = config.train, config.model
    for name in ("fp8_amax_history_len", "fp8_amax_compute_algo"):
        if getattr(train, name) is not None and (train.fp8 == "none" or train.fp8_recipe != "delayed"):
            raise ConfigError(
                f"train.{name} = {getattr(train, name)} is for delayed scaling; here train.fp8={train.fp8}, fp8_recipe={train.fp8_recipe}. "
                "Remove it, or set train.fp8_recipe=delayed."
            )
    ends = train.num_layers_at_start_in_bf16, train.num_layers_at_end_in_bf16
    if not train.first_last_layers_bf16 and ends != (1, 1):
        raise ConfigError(
            f"train.num_layers_at_start_in_bf16 = {ends[0]} and num_layers_at_end_in_bf16 = {ends[1]} are for first_last_layers_bf16. "
            "Set it to true, or remove them."
        )
    if train.fp8 == "none":
        if train.first_last_layers_bf16:
            raise ConfigError("train.first_last_layers_bf16 is for train.fp8=hybrid or e4m3; without it all layers are. Remove it.")
        if train.fp8_recipe != "tensorwise":
            raise ConfigError(f"train.fp8_recipe={train.fp8_recipe}, but train.fp8=none. Set train.fp8=hybrid, or remove the recipe.")
        return
    if train.precision != "bf16":
        raise ConfigError(
            f"train.fp8={train.fp8} needs train.precision=bf16, which all but matrix products stay in; it is {train.precision}."
        )
    _needs_te_layers(config, f"train.fp8={train.fp8}", "Set train.fp8=none, or model.transformer_impl=auto.")
    if train.fp8_recipe == "delayed" and train.first_last_layers_bf16:
        raise ConfigError(
            "train.fp8_recipe=delayed keeps no layers in bf16. Set train.fp8_recipe=tensorwise, or remove first_last_layers_bf16."
        )
    if train.first_last_layers_bf16:
        per_stage = model.num_layers // config.parallel.pipeline_model_parallel_size
        if sum(ends) >= model.num_layers or max(ends) > per_stage:
            raise ConfigError(
                f"train.num_layers_at_start_in_bf16 = {ends[0]} and num_layers_at_end_in_bf16 = {ends[1]} leave no layer of "
                f"{model.num_layers} to FP8, or exceed the {per_stage} of a pipeline stage. Lower them, or set train.fp8=none."
            )
    _check_fp8_shapes(config)


def _check_fp8_shapes(config: RunConfig) -> None:
    train, model, parallel = config.train, config.model, config.parallel
    tp, side = parallel.tensor_model_parallel_size, FP8_SIDES[train.fp8_recipe]
    parts = tp if parallel.sequence_parallel else 1
    if train.fp8_recipe == "blockwise" and parallel.sequence_parallel:
        side = BLOCK_SIDE
    query, groups = model.num_attention_heads * model.head_dim // tp, model.query_groups * model.head_dim // tp
    lengths = sorted({config.data.sequence_length, *config.data.training_lengths})
    sides = {
        "model.hidden_size": model.hidden_size,
        "model.num_attention_heads x head width on a rank": query,
        "query, key and value rows on a rank": query + 2 * groups,
        "model.ffn_hidden_size on a rank": model.ffn_hidden_size // tp,
        **{
            f"tokens of a micro-batch on a rank (train.micro_batch_size x {length})": train.micro_batch_size * length // parts
            for length in lengths
        },
    }
    for what, value in sides.items():
        if value % side:
            raise ConfigError(
                f"{what} = {value} is not a multiple of {side}, as FP8 matrices are with fp8_recipe={train.fp8_recipe}. "
                "Change it, or set train.fp8=none."
            )


def _check_fusions(config: RunConfig) -> None:
    train, model = config.train, config.model
    if train.apply_rope_fusion:
        scaling = model.rope_scaling
        if model.position_embedding_type != "rope":
            raise ConfigError(
                f"train.apply_rope_fusion is for position_embedding_type=rope, not {model.position_embedding_type}. Remove it."
            )
        if scaling and scaling.rope_type == "yarn":
            factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
            if factor != 1.0:
                raise ConfigError(
                    f"train.apply_rope_fusion cannot multiply by YaRN's attention factor, {factor:.4g} here: Megatron-core would "
                    "go back to the plain kernels. Set train.apply_rope_fusion=false."
                )
    if train.bias_activation_fusion and model.activation != "swiglu":
        raise ConfigError(
            f"train.bias_activation_fusion is for model.activation=swiglu: of {model.activation} Megatron-core fuses the approximation "
            "by tanh alone, another function than this model's GELU. Set it to false."
        )
    if not train.cross_entropy_loss_fusion:
        if train.cross_entropy_fusion_impl != "native":
            raise ConfigError("train.cross_entropy_fusion_impl is for train.cross_entropy_loss_fusion=true. Set it, or remove the other.")
        return
    if train.loss == "nucleotide":
        raise ConfigError(
            "train.cross_entropy_loss_fusion is for train.loss=token; the loss by bases has no fused kernel. Set it to false."
        )
    if train.cross_entropy_fusion_impl == "native" and train.precision != "bf16":
        raise ConfigError(
            f"train.cross_entropy_fusion_impl=native rounds its gradient to bf16, and train.precision={train.precision}. "
            "Set train.cross_entropy_loss_fusion=false, or cross_entropy_fusion_impl=te."
        )


def _check_cuda_graphs(config: RunConfig) -> None:
    train, model, data = config.train, config.model, config.data
    if train.cuda_graph_impl == "none":
        if train.cuda_graph_warmup_steps != 3:
            raise ConfigError(
                f"train.cuda_graph_warmup_steps = {train.cuda_graph_warmup_steps} is for CUDA graphs. Remove it, or set "
                "train.cuda_graph_impl."
            )
        return
    what = f"train.cuda_graph_impl={train.cuda_graph_impl}"
    reasons = {
        "model.kind=encoder: its batches have a mask only where a sample is padded, and a graph always or never": model.kind == "encoder",
        "data.document_attention=true: masks come and go from batch to batch": data.document_attention,
        "several lengths in data.stages: a graph has one shape": len({data.sequence_length, *data.training_lengths}) > 1,
        "parallel.pipeline_model_parallel_size above 1: evaluation would replay the graphs of micro-batches out of turn": (
            config.parallel.pipeline_model_parallel_size > 1
        ),
        f"train.recompute={train.recompute}: a captured backward pass cannot run a forward pass again": train.recompute != "none",
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ConfigError(f"{what} does not go with {reason}. Set train.cuda_graph_impl=none.")
    if train.cuda_graph_impl == "transformer_engine":
        _needs_te_layers(config, what, "Set train.cuda_graph_impl=local or none.")
        if train.precision != "bf16":
            raise ConfigError(
                f"{what} captures layers of bf16, and train.precision={train.precision}. Set train.cuda_graph_impl=local or none."
            )


def _check_communication(config: RunConfig) -> None:
    parallel, data, vpp = config.parallel, config.data, config.parallel.virtual_pipeline_model_parallel_size
    if parallel.tp_comm_overlap:
        if not parallel.sequence_parallel:
            raise ConfigError(
                "parallel.tp_comm_overlap needs parallel.sequence_parallel=true: it overlaps the gathering and scattering of that."
            )
        _needs_te_layers(config, "parallel.tp_comm_overlap", "Set it to false.")
        if config.train.precision != "bf16":
            raise ConfigError(
                f"parallel.tp_comm_overlap has buffers of bf16, and train.precision={config.train.precision}. Set it to false."
            )
        if len(lengths := sorted({data.sequence_length, *data.training_lengths})) > 1:
            raise ConfigError(f"parallel.tp_comm_overlap has buffers of one length; samples here have {lengths} tokens. Set it to false.")
    if parallel.batch_p2p_comm is not None and parallel.pipeline_model_parallel_size == 1:
        raise ConfigError("parallel.batch_p2p_comm is for parallel.pipeline_model_parallel_size of at least 2. Remove it.")
    if parallel.batch_p2p_comm and vpp:
        raise ConfigError(
            f"parallel.batch_p2p_comm=true with virtual_pipeline_model_parallel_size = {vpp}: batches may pair the messages of two "
            "neighbours wrongly, and the gradient would be wrong in silence. Remove it: the interleaved schedule overlaps its messages."
        )
    if parallel.overlap_p2p_comm_warmup_flush and not vpp:
        raise ConfigError(
            "parallel.overlap_p2p_comm_warmup_flush is for the interleaved schedule. Remove it, or set "
            "virtual_pipeline_model_parallel_size."
        )


def _check_cp_comm_type(config: RunConfig) -> None:
    """Settings other than the ring, which takes all that Transformer Engine's attention takes with context parallelism."""
    parallel, model = config.parallel, config.model
    what, cp, tp = f"parallel.cp_comm_type={parallel.cp_comm_type}", parallel.context_parallel_size, parallel.tensor_model_parallel_size
    if parallel.cp_comm_type == "p2p":
        return
    if cp == 1:
        raise ConfigError(f"{what} is for parallel.context_parallel_size of at least 2. Remove it.")
    _needs_te_layers(config, what, "Remove it: torch's gather keys and values.")
    if config.torch_only:  # ALiBi, fp32
        raise ConfigError(f"{what} is for the layers of Transformer Engine, but {config.torch_only}: torch's gather. Remove it.")
    if model.head_dim % 8:
        raise ConfigError(f"{what} takes heads whose width is a multiple of 8; here it is {model.head_dim}. Set it to p2p.")
    heads = {"model.num_attention_heads": model.num_attention_heads, "model.num_query_groups": model.query_groups}
    for name, number in heads.items():
        if parallel.cp_comm_type == "a2a" and number % (tp * cp):
            raise ConfigError(
                f"{what} spreads the heads of a tensor-parallel rank over context-parallel ranks: {name} = {number} is not a multiple of "
                f"tensor_model_parallel_size x context_parallel_size = {tp * cp}. Set it to p2p or all_gather, or use fewer ranks."
            )
