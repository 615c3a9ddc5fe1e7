"""Builds this rank's model chunks: the one place where Megatron's many settings are met.

Initial weights are keyed by parameter name (`initial_weight`), so every layout starts from the same model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
import xxhash
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from dnapretrain.config import ModelConfig, ParallelConfig, RunConfig, TrainConfig, padded_vocab_size
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.model.cross_entropy import token_loss
from dnapretrain.model.decoder import Decoder, decoder_spec
from dnapretrain.model.encoder import Encoder
from dnapretrain.model.kernels import check_kernels, fuse_weight_gradients, transformer_fields, without_kernels
from dnapretrain.model.layers import NORM_KEYS
from dnapretrain.model.paths import use_flex_attention, use_transformer_engine
from dnapretrain.model.rotary import stretch
from dnapretrain.parallel.platform import Platform

Chunk = Decoder | Encoder
"""What one pipeline stage of this rank holds."""


def to_transformer_config(model: ModelConfig, parallel: ParallelConfig, train: TrainConfig, platform: Platform) -> TransformerConfig:
    """Megatron-core's TransformerConfig from our sections; every other field keeps Megatron's default."""
    precision, recompute = train.precision, train.recompute
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_dim,
        normalization=model.normalization,
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=model.is_gated,
        activation_func=F.silu if model.activation == "swiglu" else F.gelu,
        add_bias_linear=model.attention_bias,  # the feed-forward's biases are set one by one: encoder_spec
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        bf16=precision == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        num_layers_in_first_pipeline_stage=parallel.num_layers_in_first_pipeline_stage,
        num_layers_in_last_pipeline_stage=parallel.num_layers_in_last_pipeline_stage,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        use_cpu_initialization=not platform.is_cuda,
        recompute_granularity=None if recompute == "none" else recompute,
        recompute_method="uniform" if recompute == "full" else None,
        recompute_num_layers=1 if recompute == "full" else None,
        # One sum over all tokens of the global batch, divided once: the same for every layout.
        calculate_per_token_loss=True,
        # Batched p2p pairs messages of the interleaved schedule wrongly where two stages are neighbours on
        # both sides: the loss is right and the gradient silently wrong.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved if parallel.batch_p2p_comm is None else parallel.batch_p2p_comm,
        # The host need not wait for the whole GPU after each message: since its pull request 82450 of 2022 torch orders the streams.
        batch_p2p_sync=False,
        overlap_p2p_comm_warmup_flush=parallel.overlap_p2p_comm_warmup_flush,
        # On CPU a send may still be reading the tensor when its memory would be given back (no stream orders them).
        deallocate_pipeline_outputs=platform.is_cuda,
        **transformer_fields(train, parallel),
    )


def build_chunks(config: RunConfig, tokenizer: Tokenizer, platform: Platform, initialize_weights: bool = True) -> list[Chunk]:
    """This rank's model chunks (one, or one per virtual stage) with their initial weights, on the device.

    Without `initialize_weights` their memory is as it comes: to be loaded or counted, not to be trained, and without the kernels that
    training may take. Raises ConfigError where this machine lacks what the settings ask for.
    """
    if initialize_weights:
        check_kernels(config, platform)
    else:
        config = without_kernels(config)
    transformer_config = to_transformer_config(config.model, config.parallel, config.train, platform)
    # Megatron's own initialization is overwritten, but it also marks which weights are spread over tensor-parallel ranks.
    transformer_config.perform_initialization = initialize_weights
    transformer_config.deterministic_mode = config.train.deterministic and platform.is_cuda
    # Megatron's name for activations that the layer spec gives, with their gates: those of `fused`.
    transformer_config.use_te_activation_func = (
        config.model.is_gated
        and not config.train.bias_activation_fusion
        and not use_transformer_engine(config.model, platform, config.torch_only)
    )
    virtual = config.parallel.virtual_pipeline_model_parallel_size
    chunks: list[Chunk] = []
    for stage in range(virtual or 1):
        vp_stage = stage if virtual else None
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        chunk = _build_chunk(config, transformer_config, tokenizer, platform, first, last, vp_stage)
        if config.model.position_embedding_type == "rope":
            stretch(chunk.rotary_pos_emb, chunk.config, config.model)
        if config.train.gradient_accumulation_fusion:
            fuse_weight_gradients(chunk)
        chunks.append(chunk.to(platform.device))
    if initialize_weights:
        initialize(chunks, config.model, tokenizer.vocab_size, config.train.seed)
    return chunks


def _build_chunk(
    config: RunConfig,
    transformer_config: TransformerConfig,
    tokenizer: Tokenizer,
    platform: Platform,
    first: bool,
    last: bool,
    vp_stage: int | None,
) -> Chunk:
    use_te = use_transformer_engine(config.model, platform, config.torch_only)
    use_flex = not use_te and use_flex_attention(config, platform)
    if config.model.kind == "encoder":
        return Encoder(
            transformer_config,
            config.model,
            tokenizer,
            config.max_positions,
            first,
            last,
            vp_stage,
            token_loss(config, tokenizer),
            use_te,
            use_flex,
        )
    return Decoder(
        transformer_config,
        token_loss=token_loss(config, tokenizer),
        transformer_layer_spec=decoder_spec(transformer_config, use_te, use_flex, vp_stage),
        vocab_size=padded_vocab_size(tokenizer.vocab_size),
        max_sequence_length=config.max_positions,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=not config.model.untie_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_base=config.model.rotary_base,
        vp_stage=vp_stage,
    )


def wrap_for_training(chunks: list[Chunk], parallel: ParallelConfig, precision: str) -> list[DistributedDataParallel]:
    """The chunks in Megatron's data-parallel wrapper; gradients are accumulated and reduced in fp32."""
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
    )
    modules = wrap_for_precision(chunks, precision)
    for chunk in chunks:
        if not next(chunk.parameters()).is_cuda:  # there train.gradient_accumulation_fusion says so, and a kernel of Apex is needed
            for linear in chunk.modules():
                if isinstance(linear, ColumnParallelLinear | RowParallelLinear):
                    # The product itself adds a weight's gradient to the fp32 sum that the wrapper makes.
                    linear.gradient_accumulation_fusion = True
    return [
        DistributedDataParallel(chunk.config, ddp_config, module, disable_bucketing=index > 0)
        for index, (chunk, module) in enumerate(zip(chunks, modules, strict=True))
    ]


def finish_param_gather(chunks: list[DistributedDataParallel]) -> None:
    """Wait for updated weights of other ranks: with overlap_param_gather the old ones stand there till the next forward pass.

    All data-parallel ranks call it together.
    """
    for chunk in chunks:
        chunk.start_param_sync(force_sync=True)


def wrap_for_precision(chunks: list[Chunk], precision: str) -> list[torch.nn.Module]:
    """The chunks as they compute: in bf16 inside, fp32 at both ends, or as they are."""
    return [Float16Module(chunk.config, chunk) if precision == "bf16" else chunk for chunk in chunks]


def named_weights(chunks: list[Chunk]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(canonical name, parameter) of this rank's chunks: global layer numbers, Transformer Engine's norm names."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if name.startswith(("decoder.layers.", "encoder.layers.")):
                block, _, index, rest = name.split(".", 3)
                for torch_name, stored_name in NORM_KEYS.items():
                    rest = rest.replace(torch_name, stored_name)
                name = f"{block}.layers.{chunk.block.layers[int(index)].layer_number - 1}.{rest}"
            if name == "output_layer.weight" and chunk.share_embeddings_and_output_weights:
                name = "embedding.word_embeddings.weight"
            yield name, parameter


@torch.no_grad()
def initialize(chunks: list[Chunk], model: ModelConfig, vocab_size: int, seed: int) -> None:
    """Set every weight from (seed, canonical name): the same model under every layout and on every device."""
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in named_weights(chunks):
        axis: int | None = getattr(parameter, "partition_dim", None) if getattr(parameter, "tensor_model_parallel", False) else None
        shape = list(parameter.shape)
        if axis is not None:
            shape[axis] *= tp_size
        full = initial_weight(name, shape, model, vocab_size, seed)
        if axis is not None and "linear_fc1" in name and model.is_gated:  # each rank holds its part of the gate, then of the up projection
            full = torch.cat([half.chunk(tp_size, dim=axis)[tp_rank] for half in full.chunk(2, dim=axis)], dim=axis)
        elif axis is not None:
            full = full.chunk(tp_size, dim=axis)[tp_rank]
        parameter.copy_(full)


def initial_weight(name: str, shape: list[int], model: ModelConfig, vocab_size: int, seed: int) -> torch.Tensor:
    """The full initial tensor `name` in fp32: gains 1, biases 0, matrices normal(0, std), padding rows 0.

    What a pre-norm layer adds to the residual starts smaller by sqrt(2 layers), as in GPT-2; a post-norm layer normalises the sum.
    """
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    ends_block = model.norm_position == "pre" and name.endswith(("linear_proj.weight", "linear_fc2.weight"))
    std = model.init_method_std / math.sqrt(2 * model.num_layers) if ends_block else model.init_method_std
    generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) >> 1)
    full = torch.empty(shape).normal_(0.0, std, generator=generator)
    if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        full[vocab_size:] = 0.0
    return full
