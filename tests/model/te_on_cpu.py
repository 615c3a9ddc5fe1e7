"""Transformer Engine's own Python on CPU ranks, its kernels written out in plain torch: what its modules are called, hold and
compute in fp32, and how they talk to other ranks, can be seen without a GPU. Its CUDA kernels and its speed cannot.

DNAPRETRAIN_TEST_TE names the wheel transformer_engine-2.11.0-py3-none-any.whl (pure Python) or a folder with what it holds.
A rank that imports this module has Transformer Engine from then on; the process of the tests itself has not.
"""

from __future__ import annotations

import importlib
import importlib.abc
import multiprocessing
import os
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

FOLDER = "DNAPRETRAIN_TEST_TE"
ABSENT = (
    "einops",
    "triton",
    "triton.language",
    "triton.language.standard",
    "triton.language.core",
    "onnx",
    "onnxscript",
)  # imported by parts that are not used here
VERSION = "2.11.0"


def install() -> None:
    """Make `import transformer_engine` work in this process. To be called before Megatron-core is imported."""
    import torch
    import torch._dynamo  # looks for triton: before it is pretended to be there

    assert "megatron.core" not in sys.modules
    sys.path.insert(0, os.environ[FOLDER])
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # leaves its libraries alone
    os.environ["NVTE_TORCH_COMPILE"] = "0"
    os.environ["NVTE_UNFUSED_FP8_UPDATE"] = "1"  # delayed scaling's histories by its Python, not by its kernel
    os.environ["NVTE_MASKED_SOFTMAX_FUSION"] = "0"  # its own softmax kernels, which bf16 would take
    sys.modules["transformer_engine_torch"] = Kernels("transformer_engine_torch")
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(major=8, minor=0, multi_processor_count=1)
    torch.cuda.is_current_stream_capturing = lambda: False
    plain_to = torch.Tensor.to
    torch.Tensor.to = lambda self, *a, device=None, **k: plain_to(self, *a, **k, **({} if device in (None, "cuda") else {"device": device}))
    torch.Tensor.is_cuda = property(lambda self: True)
    sys.meta_path.insert(0, NoLibrary())
    with absent_packages():
        import transformer_engine.pytorch
    assert transformer_engine.__version__ == VERSION, transformer_engine.__version__


class NoLibrary(importlib.abc.MetaPathFinder):
    """Keeps Transformer Engine from loading its compiled library, which `Kernels` stands for."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "transformer_engine.pytorch":
            sys.modules["transformer_engine.common"].load_framework_extension = lambda framework: None


@contextmanager
def absent_packages() -> Any:
    added = [name for name in ABSENT if name not in sys.modules]
    sys.modules.update({name: MagicMock(__version__="3.6.0") for name in added})
    yield
    for name in added:
        del sys.modules[name]


class Kernels(ModuleType):
    """The compiled library: what dense layers in fp32, bf16 and FP8 call, and names that stand for everything else."""

    __all__ = (
        *("generic_gemm", "layernorm_fwd", "layernorm_bwd", "rmsnorm_fwd", "rmsnorm_bwd", "get_cudnn_version"),
        *("quantize", "bgrad_quantize", "dequantize", "fp8_transpose", "get_fused_attn_backend"),
        *("multi_tensor_l2norm", "multi_tensor_scale", "multi_tensor_adam"),
    )
    fp8_products = 0
    """Matrix products with an FP8 operand so far."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, MagicMock(name=name))
        return getattr(self, name)

    @staticmethod
    def get_cudnn_version():
        return 91500

    @staticmethod
    def get_fused_attn_backend(*_, **__):
        """None: bf16 takes the unfused kernels, as fp32 does anyway."""
        return sys.modules["transformer_engine_torch"].NVTE_Fused_Attn_Backend.NVTE_No_Backend

    @staticmethod
    def quantize(source, quantizer, target=None, noop=None):
        """FP8 values of `source`, scaled by its own largest value or by the quantizer's scale, and those transposed where asked for."""
        import torch

        kind = fp8_type(quantizer.dtype)
        largest = source.detach().abs().max().float()
        delayed = type(quantizer).__name__ == "Float8Quantizer"
        scale = quantizer.scale if delayed else torch.finfo(kind).max / largest.clamp(min=1e-12)
        if delayed:
            quantizer.amax.copy_(largest)
        if target is None:
            target = quantizer.make_empty(source.shape, dtype=source.dtype, device=source.device)
        limit = torch.finfo(kind).max
        data = (source.detach().float() * scale).clamp(-limit, limit).to(kind).view(torch.uint8)

        def fill(place, values):  # where the flag is up it stays as it is: captured graphs so leave weights that have not changed
            place.copy_(values if noop is None else torch.where(noop.bool(), place, values))

        if target._data is not None:
            fill(target._data, data)
        if target._transpose is not None:
            fill(target._transpose, data.movedim(-1, 0))
            target._transpose_invalid = False
        fill(target._scale_inv, (1 / scale).reshape(1))
        return target

    @staticmethod
    def bgrad_quantize(gradient, quantizer):
        """The bias's gradient, and the gradient itself in FP8."""
        return gradient.reshape(-1, gradient.shape[-1]).sum(0), Kernels.quantize(gradient, quantizer)

    @staticmethod
    def dequantize(tensor, _dtype):
        return values(tensor)

    @staticmethod
    def fp8_transpose(data, _dtype, out=None):
        return data.movedim(-1, 0).contiguous()

    @staticmethod
    def generic_gemm(a, trans_a, b, trans_b, out, quantizer, dtype, bias, _bias_dtype, _gelu, _gelu_in, grad, *rest, **_):
        """Row by row: op(b) @ op(a), as cuBLAS reads them column by column; with `grad` and a bias, the bias's gradient."""
        from transformer_engine.pytorch.constants import TE_DType_To_Torch

        assert quantizer is None
        is_fp8 = hasattr(a, "_scale_inv"), hasattr(b, "_scale_inv")
        Kernels.fp8_products += any(is_fp8)
        a, b = values(a), values(b)
        first = b.reshape(-1, b.shape[-1])
        second = a.reshape(-1, a.shape[-1])
        result = (first.T if trans_b else first) @ (second.T if trans_a else second)
        if not trans_b:
            result = result.reshape(*b.shape[:-1], -1)
        bias_grad = None
        if bias is not None and grad:
            bias_grad = first.sum(0)
        elif bias is not None:
            result = result + bias
        if any(is_fp8) and dtype in TE_DType_To_Torch:
            result = result.to(TE_DType_To_Torch[dtype])
        if out is not None:
            result = out.add_(result) if rest[2] else out.copy_(result)
        return result, bias_grad, None, None

    @staticmethod
    def layernorm_fwd(x, weight, bias, eps, out, quantizer, _dtype, _sm_margin, zero_centered):
        """In fp32, as the CUDA kernels; the result has the input's type."""
        assert not zero_centered
        wide = x.float()
        mean = wide.mean(-1)
        centred = wide - mean[:, None]
        inverse = (centred.square().mean(-1) + eps).rsqrt()
        result = (centred * inverse[:, None] * weight.float() + bias.float()).to(x.dtype)
        result = result if quantizer is None else Kernels.quantize(result, quantizer)
        return (result if out is None else out.copy_(result)), mean, inverse

    @staticmethod
    def layernorm_bwd(grad, x, mean, inverse, weight, _sm_margin, _zero_centered):
        normal = (x.float() - mean[:, None]) * inverse[:, None]
        wanted = grad.float() * weight.float()
        inner = wanted - wanted.mean(-1, keepdim=True) - normal * (wanted * normal).mean(-1, keepdim=True)
        sums = (grad.float() * normal).sum(0).to(weight.dtype), grad.float().sum(0).to(weight.dtype)
        return (inner * inverse[:, None]).to(x.dtype), *sums

    @staticmethod
    def rmsnorm_fwd(x, weight, eps, out, quantizer, _dtype, _sm_margin, zero_centered):
        assert not zero_centered
        wide = x.float()
        inverse = (wide.square().mean(-1) + eps).rsqrt()
        result = (wide * inverse[:, None] * weight.float()).to(x.dtype)
        result = result if quantizer is None else Kernels.quantize(result, quantizer)
        return (result if out is None else out.copy_(result)), None, inverse

    @staticmethod
    def rmsnorm_bwd(grad, x, inverse, weight, *_):
        normal = x.float() * inverse[:, None]
        wanted = grad.float() * weight.float()
        inner = wanted - normal * (wanted * normal).mean(-1, keepdim=True)
        return (inner * inverse[:, None]).to(x.dtype), (grad.float() * normal).sum(0).to(weight.dtype)

    @staticmethod
    def multi_tensor_l2norm(_chunk_size, _noop, lists, *_):
        import torch

        return torch.cat([tensor.detach().flatten().float() for tensor in lists[0]]).norm().reshape(1), None

    @staticmethod
    def multi_tensor_scale(_chunk_size, _noop, lists, factor):
        for source, target in zip(*lists, strict=True):
            target.copy_(source * factor)

    @staticmethod
    def multi_tensor_adam(_chunk_size, _noop, lists, lr, beta1, beta2, eps, step, is_adamw, corrects_bias, weight_decay):
        assert is_adamw and corrects_bias
        for gradient, weight, first, second in zip(*lists, strict=True):
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            update = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + eps)
            weight.sub_(lr * (update + weight_decay * weight))


def fp8_type(te_type: Any) -> Any:
    """torch's type for Transformer Engine's."""
    from transformer_engine.pytorch.constants import TE_DType_To_Torch

    return TE_DType_To_Torch[te_type]


def values(tensor: Any) -> Any:
    """What an operand stands for: itself, or in fp32 what FP8 values and their scale do."""
    import torch

    if not hasattr(tensor, "_scale_inv"):
        return tensor
    data = tensor._data if tensor._data is not None else tensor._transpose.movedim(0, -1)
    return data.contiguous().view(fp8_type(tensor._fp8_dtype)).float() * tensor._scale_inv.to(torch.float32)


if multiprocessing.parent_process() is not None:
    install()


def on_cuda(platform: Any) -> Any:
    """`platform`, a CPU's, that says it were CUDA: so models are built by the path that GPUs take."""

    class Cuda(type(platform)):
        is_cuda = True

    return Cuda(platform.device, platform.backend, platform.rank, platform.world_size)


def look(env: Any, store: Any, tree: dict[str, Any], impl: str, tokens: Any) -> SimpleNamespace:
    """What this rank's model is, and what it computes of `tokens` [B, S] where nothing is padded and where they are."""
    import torch

    from dnapretrain.config_file import config_from_dict
    from dnapretrain.data.tokens.tokenizers import build_tokenizer
    from dnapretrain.model.batches import padding_mask
    from dnapretrain.model.build import build_chunks, named_weights
    from dnapretrain.model.paths import active_paths
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups
    from dnapretrain.train.checkpoint import sharded_model

    config = config_from_dict({**tree, "model": {**tree["model"], "transformer_impl": impl}})
    on_cpu = platforms.start("cpu", env)
    platform = on_cuda(on_cpu)
    start_groups(on_cpu, config.parallel, config.train.seed, store)
    tokenizer = build_tokenizer(config.tokenizer)
    chunks = build_chunks(config, tokenizer, platform)
    torch.cuda.get_device_name = lambda *_: "none"
    marks = ("tensor_model_parallel", "partition_dim", "sequence_parallel")
    found = SimpleNamespace(
        paths=active_paths(config.model, "fp32", platform),
        classes={cls.__name__ for chunk in chunks for module in chunk.block.modules() for cls in type(module).__mro__},
        stored={key: entry.global_shape for part in sharded_model(chunks).values() for key, entry in stored_tensors(part)},
        marks={name: [getattr(weight, mark, False) for mark in marks] for name, weight in named_weights(chunks)},
        initial={name: weight.detach().clone() for name, weight in named_weights(chunks)},
        results=[],
    )
    with torch.no_grad():  # norms and biases too, and every rank the same where it holds the same
        for name, weight in named_weights(chunks):
            weight.add_(torch.empty_like(weight).normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name))))
    decoder = config.model.kind == "decoder"
    padded = tokens.clone()
    padded[0, tokens.shape[1] // 2 :] = tokenizer.pad_id
    for batch in (tokens, padded):
        mask = None if decoder else padding_mask(batch.numpy(), tokenizer.pad_id, batch.device)
        positions = torch.arange(batch.shape[1]).expand_as(batch)
        logits = chunks[0].eval()(batch, positions, mask)
        chunks[0].zero_grad()
        (logits * (batch != tokenizer.pad_id)[..., None]).square().sum().backward()
        gradients = {name: weight.grad.clone() for name, weight in named_weights(chunks)}
        found.results.append((logits.detach()[batch != tokenizer.pad_id], gradients))
    return found


def stored_tensors(part: dict[str, Any]) -> list[tuple[str, Any]]:
    """(stored name, tensor of a checkpoint) of a sharded state, with what a factory splits."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    built = [entry.build() if isinstance(entry, ShardedTensorFactory) else entry for entry in part.values()]
    return [(entry.key, entry) for entry in nested_values(built) if isinstance(entry, ShardedTensor)]


def train(env: Any, store: Any, tree: dict[str, Any], impl: str, until: int, save: bool = False) -> Any:
    """`training.train` with layers of `impl`, "te" or "torch", which a run on the CPU cannot choose by its settings."""
    import training

    from dnapretrain.model import build

    plain = build.use_transformer_engine
    build.use_transformer_engine = lambda *_: impl == "te"
    try:
        return training.train(env, store, tree, until, save)
    finally:
        build.use_transformer_engine = plain


def train_fp8(env: Any, store: Any, tree: dict[str, Any], until: int, save: bool = False) -> Any:
    """`training.train` on Transformer Engine's layers, as it runs on a GPU that has FP8: what it gives, the recipes that passes were
    in (class, format, history and its algorithm; None where a layer was in none), and the number of products in FP8."""
    import transformer_engine.pytorch.quantization as quantization
    from transformer_engine.pytorch.module.layernorm_linear import LayerNormLinear

    from dnapretrain.model import kernels, paths

    quantization.get_device_compute_capability = lambda: (9, 0)
    quantization.FP8GlobalStateManager.reset()  # a process has one run
    manager, plain_why, plain_forward, seen = quantization.FP8GlobalStateManager, paths.why_torch, LayerNormLinear.forward, []
    kernels.why_torch = lambda *_: None

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        recipe = manager.get_fp8_recipe() if manager.is_fp8_enabled() else None
        history = (getattr(recipe, name, None) for name in ("amax_history_len", "amax_compute_algo"))
        seen.append((type(recipe).__name__, recipe.fp8_format.name, *history) if recipe else None)
        return plain_forward(self, *arguments, **options)

    LayerNormLinear.forward, before = forward, Kernels.fp8_products
    try:
        return train(env, store, tree, "te", until, save), seen, Kernels.fp8_products - before
    finally:
        LayerNormLinear.forward, kernels.why_torch = plain_forward, plain_why


def train_scaled(env: Any, store: Any, tree: dict[str, Any], until: int = 0, save: bool = False, forget: bool = False) -> Any:
    """(what `training.train` gives in FP8, the scales that lay in this rank's modules before its first step by their stored names).

    `forget`: as older versions, which stored none."""
    import training

    from dnapretrain.train import checkpoint
    from dnapretrain.train.fp8_scales import has_scales, scales_to_store

    plain_begin, found = training.begin, {}

    def begin(*arguments: Any) -> Any:
        begun = plain_begin(*arguments)
        models = [checkpoint.unwrapped(chunk) for chunk in begun[0].chunks]
        found.update({name: entry.data for name, entry in scales_to_store(models, checkpoint.SHARDING).items()})
        assert has_scales(models) == bool(found)
        return begun

    training.begin = begin
    if forget:
        checkpoint.scales_to_store = lambda *_: {}
    try:
        return train_fp8(env, store, tree, until, save)[0], found
    finally:
        training.begin, checkpoint.scales_to_store = plain_begin, scales_to_store


def dropped(env: Any, store: Any, tree: dict[str, Any]) -> list[Any]:
    """Two contexts of Transformer Engine's attention in training, of values that are all 1 and the same on every rank."""
    import torch
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.transformer.enums import AttnMaskType

    from dnapretrain.config_file import config_from_dict
    from dnapretrain.model.build import to_transformer_config
    from dnapretrain.model.transformer_engine import EncoderAttention
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    config, platform = config_from_dict(tree), platforms.start("cpu", env)
    start_groups(platform, config.parallel, config.train.seed, store)
    model_parallel_cuda_manual_seed(3)
    arguments = {"layer_number": 1, "attn_mask_type": AttnMaskType.padding, "attention_type": "self"}
    attention = EncoderAttention(to_transformer_config(config.model, config.parallel, config.train, platform), **arguments)
    heads = config.model.num_attention_heads // config.parallel.tensor_model_parallel_size
    ones = torch.ones(8, 2, heads, config.model.head_dim)
    return [attention(ones, ones, ones) for _ in range(2)]


def told_of_context(env: Any, store: Any, tree: dict[str, Any]) -> list[str]:
    """How attention of every layer of Transformer Engine's model was told to exchange over context-parallel ranks."""
    from dnapretrain.config_file import config_from_dict
    from dnapretrain.data.tokens.tokenizers import build_tokenizer
    from dnapretrain.model import build
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    config, platform = config_from_dict(tree), platforms.start("cpu", env)
    start_groups(platform, config.parallel, config.train.seed, store)
    plain = build.use_transformer_engine, build.check_kernels
    build.use_transformer_engine, build.check_kernels = (lambda *_: True), (lambda *_: None)
    try:
        chunks = build.build_chunks(config, build_tokenizer(config.tokenizer), platform)
    finally:
        build.use_transformer_engine, build.check_kernels = plain
    return [module.cp_comm_type for chunk in chunks for module in chunk.modules() if hasattr(module, "cp_comm_type")]


def over_ranks(env: Any, store: Any, tree: dict[str, Any], tensors: list[Any], mask: Any) -> tuple[Any, Any]:
    """(what Transformer Engine was told of context parallelism; context of this rank's part of padded samples, by our attention)."""
    from megatron.core.transformer.enums import AttnMaskType

    from dnapretrain.config_file import config_from_dict
    from dnapretrain.model.build import to_transformer_config
    from dnapretrain.model.context_parallel import own_part
    from dnapretrain.model.transformer_engine import EncoderAttention
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    config, platform = config_from_dict(tree), platforms.start("cpu", env)
    start_groups(platform, config.parallel, config.train.seed, store)
    transformer_config = to_transformer_config(config.model, config.parallel, config.train, platform)
    arguments = {"layer_number": 1, "attn_mask_type": AttnMaskType.padding, "attention_type": "self"}
    attention = EncoderAttention(transformer_config, cp_comm_type=transformer_config.cp_comm_type, **arguments)
    told = attention.cp_group.size(), list(attention.cp_global_ranks), attention.cp_comm_type
    return told, attention(*(own_part(tensor, env.rank, env.world_size, dim=0) for tensor in tensors), mask)
