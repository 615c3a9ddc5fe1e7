"""What a layer of the torch path does between its matrix products, each with its own backward pass.

The plain formulas keep a tensor for every multiplication and pass over memory for each; these keep the input alone (and one number
per token) and write into memory that they have. Tests hold each equal to its plain formula. They hold no kernel of their own, so
they run wherever torch runs; Transformer Engine's layers bring theirs.

Shape suffixes: H hidden, F feed-forward, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _RmsNorm(torch.autograd.Function):
    """y = x r w with r = 1 / sqrt(mean(x^2) + eps). With n = x r the gradients are r (g w - n mean(g w n)) and sum over tokens of g n."""

    @staticmethod
    def forward(ctx: Any, input_: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        root_T1 = torch.linalg.vector_norm(input_, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_T1 = root_T1.square_().div_(input_.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(input_, weight_H, inverse_T1)
        return (input_.float() * inverse_T1).mul_(weight_H).to(input_.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input_, weight_H, inverse_T1 = ctx.saved_tensors
        gradient, width = gradients[0].float(), input_.shape[-1]
        normed, weight = input_.float() * inverse_T1, weight_H.float()
        product_TH = (gradient * normed).reshape(-1, width)
        of_weight_H = product_TH.sum(dim=0).to(weight_H.dtype)
        mean_T1 = (product_TH @ weight).div_(width).view(inverse_T1.shape)
        # The product's memory is free again, and as large as the result.
        of_input = torch.mul(gradient, weight, out=product_TH.view(gradient.shape))
        of_input.addcmul_(normed, mean_T1, value=-1).mul_(inverse_T1)
        return of_input.to(input_.dtype), of_weight_H, None


def rms_norm(input_: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.rms_norm` over the last axis of [..., H], computed in fp32."""
    result: Tensor = _RmsNorm.apply(input_, weight_H, eps)
    return result


class _LayerNorm(torch.autograd.Function):
    """y = n w + b with n = (x - mean(x)) r: torch's kernel, but for the gradients of w and b, sums over tokens of g n and of g.

    In bf16 torch adds these up in bf16 on the CPU: from some hundred tokens on much of them is lost. Here they are added in fp32.
    """

    @staticmethod
    def forward(ctx: Any, input_: Tensor, weight_H: Tensor, bias_H: Tensor, eps: float) -> Tensor:
        # Of fp32 gains torch keeps mean and r in fp32 too.
        result, mean_T1, inverse_T1 = torch.native_layer_norm(input_, weight_H.shape, weight_H.float(), bias_H.float(), eps)
        ctx.save_for_backward(input_, weight_H, bias_H, mean_T1, inverse_T1)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (input_, weight_H, bias_H, mean_T1, inverse_T1) = gradients, ctx.saved_tensors
        width = weight_H.shape[0]
        of_input, _, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, input_, weight_H.shape, mean_T1, inverse_T1, weight_H.float(), bias_H.float(), [True, False, False]
        )
        products = input_.float().sub_(mean_T1).mul_(inverse_T1).mul_(gradient).reshape(-1, width)
        of_bias_H = gradient.reshape(-1, width).sum(dim=0, dtype=torch.float32)
        return of_input, products.sum(dim=0).to(weight_H.dtype), of_bias_H.to(bias_H.dtype), None


def layer_norm(input_: Tensor, weight_H: Tensor, bias_H: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.layer_norm` over the last axis of [..., H], every sum in fp32."""
    result: Tensor = _LayerNorm.apply(input_, weight_H, bias_H, eps)
    return result


class _Gated(torch.autograd.Function):
    """activation(first half) x second half; the activation is computed again for the backward pass rather than kept."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor, is_silu: bool) -> Tensor:
        ctx.save_for_backward(halves)
        ctx.is_silu = is_silu
        gate, value = halves.chunk(2, dim=-1)
        return (F.silu(gate) if is_silu else F.gelu(gate)).mul_(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (halves,) = gradients, ctx.saved_tensors
        gate, value = halves.chunk(2, dim=-1)
        of_halves = torch.empty_like(halves)
        of_gate, of_value = of_halves.chunk(2, dim=-1)
        aten = torch.ops.aten
        forward, backward = (aten.silu, aten.silu_backward) if ctx.is_silu else (aten.gelu, aten.gelu_backward)
        forward(gate, out=of_value).mul_(gradient)
        backward(torch.mul(gradient, value, out=of_gate), gate, grad_input=of_gate)
        return of_halves, None


def swiglu(halves: Tensor) -> Tensor:
    """silu(first half) x second half of the last axis: [..., 2 F] -> [..., F]."""
    result: Tensor = _Gated.apply(halves, True)
    return result


def geglu(halves: Tensor) -> Tensor:
    """gelu(first half) x second half of the last axis: [..., 2 F] -> [..., F]; the exact GELU."""
    result: Tensor = _Gated.apply(halves, False)
    return result
