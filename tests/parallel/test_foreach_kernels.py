import torch

from dnapretrain.parallel import foreach_kernels


def gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * 10**power for power, shape in enumerate([(7,), (3, 5), (), (64, 33)], -2)]


def test_the_norm_is_that_of_all_numbers():
    norm, per_tensor = foreach_kernels.l2_norm(0, torch.zeros(1), [gradients()], False)
    plain = torch.cat([tensor.flatten() for tensor in gradients()]).double().norm()
    assert norm.shape == (1,) and norm.dtype == torch.float32 and per_tensor is None
    assert abs(norm.double() / plain - 1) < 1e-6


def test_scaling_in_place_and_into_others():
    plain = [tensor * 0.3 for tensor in gradients()]
    same, others = gradients(), [torch.empty_like(tensor) for tensor in gradients()]
    foreach_kernels.scale(0, torch.zeros(1), [same, same], 0.3)
    foreach_kernels.scale(0, torch.zeros(1), [gradients(), others], 0.3)
    assert all(torch.equal(*three) for three in (*zip(plain, same, strict=True), *zip(plain, others, strict=True)))


def test_megatron_takes_them_where_it_has_no_others(monkeypatch):
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, optimizer

    for module in (clip_grads, optimizer):
        for name in ("multi_tensor_applier", "multi_tensor_scale_impl"):
            monkeypatch.setattr(module, name, "Apex's")
    monkeypatch.setattr(clip_grads, "l2_norm_impl", "Apex's")
    foreach_kernels.use_where_megatron_has_none()
    assert clip_grads.l2_norm_impl == optimizer.multi_tensor_scale_impl == "Apex's"
    monkeypatch.setattr(clip_grads, "multi_tensor_applier", utils.local_multi_tensor_applier)
    foreach_kernels.use_where_megatron_has_none()
    assert clip_grads.l2_norm_impl is foreach_kernels.l2_norm
    assert optimizer.multi_tensor_scale_impl is clip_grads.multi_tensor_scale_impl is foreach_kernels.scale
    weight = torch.nn.Parameter(torch.zeros(64, 33))
    weight.grad = gradients()[-1]
    norm = weight.grad.norm()
    monkeypatch.setattr(torch.Tensor, "type", lambda self: "torch.cuda.FloatTensor")  # which Megatron-core asks for
    plain_zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *args, device=None, **options: plain_zeros(*args, **options))
    clip_grads.clip_grad_by_total_norm_fp32([weight], 1.0, float(norm))
    assert abs(weight.grad.norm() - 1) < 1e-5
