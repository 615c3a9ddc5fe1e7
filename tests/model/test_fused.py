"""What is fused by hand against its plain formula: values and gradients, in fp64, fp32 and bf16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dnapretrain.model.fused import geglu, layer_norm, rms_norm, swiglu

TYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def values_and_gradients(function, *inputs):
    """The results of `function` and the gradients of its inputs for a fixed gradient of each result."""
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(7)
    of_results = [torch.randn(result.shape, generator=generator).to(result.dtype) for result in results]
    return [*results, *torch.autograd.grad(results, inputs, of_results)]


def assert_equal(fused, plain, dtype, *inputs):
    """`fused` gives what `plain` gives in fp64, as near as the type allows, and keeps the type."""
    inputs = [value.to(dtype) for value in inputs]
    got = values_and_gradients(fused, *inputs)
    expected = values_and_gradients(plain, *[value.double() for value in inputs])
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        bound = TYPES[dtype]
        torch.testing.assert_close(one.double(), other, rtol=bound, atol=bound * float(other.abs().max()))


@pytest.mark.parametrize("dtype", TYPES)
def test_rms_norm(dtype):
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(5, 3, 24, generator=generator) * 3, torch.randn(24, generator=generator)
    inputs[0, 0] = 0.0  # nothing to normalise: eps keeps it from dividing by 0
    assert_equal(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (24,), w, 1e-5), dtype, inputs, weight)


@pytest.mark.parametrize("dtype", TYPES)
def test_layer_norm(dtype):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 3, 24, generator=generator) * 3 + 1
    weight, bias = torch.randn(2, 24, generator=generator)
    inputs[0, 0] = 2.0  # nothing to normalise
    assert_equal(lambda x, w, b: layer_norm(x, w, b, 1e-5), lambda x, w, b: F.layer_norm(x, (24,), w, b, 1e-5), dtype, inputs, weight, bias)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("fused", "activation"), [(swiglu, F.silu), (geglu, F.gelu)])
def test_gated_activations(fused, activation, dtype):
    halves = torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(1)) * 3

    def plain(both):
        gate, value = both.chunk(2, dim=-1)
        return activation(gate) * value

    assert_equal(fused, plain, dtype, halves)


@pytest.mark.parametrize("norm", [lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: layer_norm(x, w, w, 1e-5)])
def test_norms_take_transposed_inputs(norm):
    """As after an embedding, [B, S, H] seen as [S, B, H]."""
    whole, weight = torch.randn(5, 3, 24), torch.randn(24)
    seen = values_and_gradients(lambda x, w: norm(x.transpose(0, 1), w).transpose(0, 1).contiguous(), whole, weight)
    for one, other in zip(seen, values_and_gradients(norm, whole, weight), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_by_finite_differences():
    """RMS norm aside, which computes in fp32 whatever it is given."""
    generator = torch.Generator().manual_seed(3)
    halves = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, halves)
    assert torch.autograd.gradcheck(geglu, halves)
