"""Settings of kernels on their way into Megatron-core's configuration, and what is refused where a machine lacks something."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import training

from dnapretrain.config_file import config_from_dict
from dnapretrain.errors import ConfigError
from dnapretrain.model import kernels, paths
from dnapretrain.model.build import to_transformer_config
from dnapretrain.parallel.platform import Platform

CPU = Platform(torch.device("cpu"), "gloo", 0, 1)
CUDA = Platform(torch.device("cuda"), "nccl", 0, 1)


@pytest.fixture
def build(tiny_config):
    def from_settings(**settings):
        tree = tiny_config(**{"train.precision": "bf16", "model.transformer_impl": "auto", **settings})
        return config_from_dict(tree)

    return from_settings


def fields(config):
    return to_transformer_config(config.model, config.parallel, config.train, CPU)


def test_defaults_are_megatrons(build):
    plain = fields(build())
    assert (plain.fp8, plain.cuda_graph_impl, plain.apply_rope_fusion, plain.tp_comm_overlap) == (None, "none", False, False)
    assert not plain.cross_entropy_loss_fusion and not plain.bias_activation_fusion and not plain.gradient_accumulation_fusion


def test_fp8_reaches_megatron(build):
    config = build(**{"train.fp8": "hybrid", "train.fp8_recipe": "delayed", "train.fp8_amax_compute_algo": "most_recent"})
    found = fields(config)
    assert (found.fp8, found.fp8_recipe, found.fp8_amax_history_len, found.fp8_amax_compute_algo) == (
        "hybrid",
        "delayed",
        1024,
        "most_recent",
    )
    ends = {"train.first_last_layers_bf16": True, "train.num_layers_at_end_in_bf16": 2}
    found = fields(build(**{"train.fp8": "e4m3", "train.fp8_recipe": "blockwise", **ends}))
    assert (found.fp8, found.fp8_recipe, found.first_last_layers_bf16) == ("e4m3", "blockwise", True)
    assert (found.num_layers_at_start_in_bf16, found.num_layers_at_end_in_bf16) == (1, 2)


def test_the_rest_reaches_megatron(build, monkeypatch):
    monkeypatch.setattr(kernels.megatron_layers, "_grad_accum_fusion_available", True)
    settings = {
        "train.attention_backend": "fused",
        "train.bias_activation_fusion": True,
        "train.cross_entropy_loss_fusion": True,
        "train.cross_entropy_fusion_impl": "te",
        "train.gradient_accumulation_fusion": True,
        "train.cuda_graph_impl": "local",
        "train.cuda_graph_warmup_steps": 4,
        "parallel.tp_comm_overlap": True,
        "parallel.tp": 2,
        "parallel.sequence_parallel": True,
    }
    found = fields(build(**settings))
    assert found.attention_backend.name == "fused" and found.bias_activation_fusion and found.gradient_accumulation_fusion
    assert (found.cross_entropy_loss_fusion, found.cross_entropy_fusion_impl) == (True, "te")
    assert (found.cuda_graph_impl, found.cuda_graph_warmup_steps, found.tp_comm_overlap) == ("local", 4, True)


def test_a_resume_with_delayed_scaling_is_told_what_it_lacks(build):
    delayed = build(**{"train.fp8": "hybrid", "train.fp8_recipe": "delayed"}).train
    (said,) = kernels.forgotten_scales(delayed, False)
    assert "holds no FP8 scales" in said and "begin at 1" in said
    assert kernels.forgotten_scales(delayed, True) == []
    assert kernels.forgotten_scales(build(**{"train.fp8": "hybrid"}).train, False) == kernels.forgotten_scales(build().train, False) == []


@pytest.mark.parametrize("way", ["p2p", "all_gather", "a2a"])
def test_communication_of_context_parallelism_reaches_megatron(build, way):
    assert fields(build(**{"parallel.cp": 2, "parallel.cp_comm_type": way})).cp_comm_type == way


def test_pipeline_messages_reach_megatron(build):
    def messages(**parallel):
        found = fields(build(**{f"parallel.{name}": value for name, value in {"pp": 2, **parallel}.items()}))
        return found.overlap_p2p_comm, found.batch_p2p_comm, found.overlap_p2p_comm_warmup_flush

    assert messages() == (False, True, False)
    assert messages(batch_p2p_comm=False) == (False, False, False)
    assert messages(vpp=2) == (True, False, False)
    assert messages(vpp=2, overlap_p2p_comm_warmup_flush=True) == (True, False, True)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"train.fp8": "hybrid"}, "train.fp8=hybrid"),
        ({"train.attention_backend": "flash"}, "train.attention_backend=flash"),
        ({"train.cuda_graph_impl": "transformer_engine"}, "train.cuda_graph_impl=transformer_engine"),
        ({"train.cuda_graph_impl": "local"}, "train.cuda_graph_impl=local"),
        ({"train.apply_rope_fusion": True}, "train.apply_rope_fusion"),
        ({"train.cross_entropy_loss_fusion": True, "train.cross_entropy_fusion_impl": "te"}, "train.cross_entropy_fusion_impl=te"),
        ({"train.gradient_accumulation_fusion": True}, "train.gradient_accumulation_fusion"),
        ({"parallel.tp_comm_overlap": True, "parallel.tp": 2, "parallel.sequence_parallel": True}, "parallel.tp_comm_overlap"),
        ({"parallel.cp": 2, "parallel.cp_comm_type": "all_gather"}, "parallel.cp_comm_type=all_gather"),
    ],
)
def test_what_a_cpu_lacks_is_refused(build, settings, key):
    config = build(**settings)
    with pytest.raises(ConfigError, match=f"^{key} .*CUDA"):
        kernels.check_kernels(config, CPU)
    kernels.check_kernels(kernels.without_kernels(config), CPU)  # evaluation runs there all the same


def test_without_kernels_leaves_nothing_but_the_model(build):
    settings = {
        "train.fp8": "hybrid",
        "train.fp8_recipe": "delayed",
        "train.fp8_amax_history_len": 4,
        "train.attention_backend": "flash",
        "train.apply_rope_fusion": True,
        "train.bias_activation_fusion": True,
        "train.cross_entropy_loss_fusion": True,
        "train.gradient_accumulation_fusion": True,
        "train.cuda_graph_impl": "local",
    }
    assert kernels.without_kernels(build(**settings)) == build()


def test_an_environment_that_says_otherwise_is_refused(build, monkeypatch):
    monkeypatch.setattr(paths, "HAVE_TE", True)
    for name in ("NVTE_FLASH_ATTN", "NVTE_UNFUSED_ATTN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NVTE_FUSED_ATTN", "0")
    for backend in ("auto", "fused"):
        with pytest.raises(ConfigError, match="NVTE_FUSED_ATTN=1, but the environment has 0"):
            kernels.check_kernels(build(**{"train.attention_backend": backend}), CUDA)
    monkeypatch.setenv("NVTE_FLASH_ATTN", "1")
    monkeypatch.setenv("NVTE_UNFUSED_ATTN", "0")
    kernels.check_kernels(build(**{"train.attention_backend": "flash"}), CUDA)


def test_the_start_says_which_kernels_are_taken(build, monkeypatch):
    monkeypatch.setattr(paths, "HAVE_TE", True)
    plain = kernels.kernel_paths(build(), CUDA)
    assert plain["FP8"].startswith("none") and plain["CUDA graphs"] == "none" and plain["overlapped"] == "no communication"
    told = kernels.kernel_paths(
        build(**{"train.fp8": "hybrid", "train.first_last_layers_bf16": True, "train.gradient_accumulation_fusion": True}), CUDA
    )
    assert "E5M2 gradients, tensorwise scaling: matrix products of 2 of 4 layers" in told["FP8"]
    assert "weight gradients added within the product (Transformer Engine's layers)" in told["fused kernels"]
    delayed = kernels.kernel_paths(build(**{"train.fp8": "e4m3", "train.fp8_recipe": "delayed"}), CUDA)
    assert "by the max of 1024 steps, which checkpoints hold" in delayed["FP8"]


def test_torch_names_its_attention(build):
    said = kernels._sdpa_choice(build(), torch.zeros(1))
    assert said in ("math", "flash attention", "efficient attention", "cudnn attention")
    assert kernels.attention_taken(build(), True, torch.zeros(1)) is None  # on CPU there is nothing to choose


def test_weight_gradients_are_fused_where_a_layer_can():
    layer, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    layer.fuse_wgrad_accumulation = False
    chunk = torch.nn.Sequential(layer, other)
    chunk.config = SimpleNamespace(gradient_accumulation_fusion=False)
    kernels.fuse_weight_gradients(chunk)
    assert layer.fuse_wgrad_accumulation and chunk.config.gradient_accumulation_fusion
    assert not hasattr(other, "fuse_wgrad_accumulation")


@pytest.mark.parametrize("world_size", [1, 2])
def test_fused_functions_train_as_the_plain_ones(ranks, tiny_config, world_size):
    """SwiGLU and cross-entropy of Megatron-core's compiled functions, uncompiled here: another order of roundings, the same model."""
    settings = {"train.precision": "bf16", "parallel.tp": world_size}
    plain = ranks.run(world_size, training.train, tree=tiny_config("plain", **settings), until=4)[0]
    fusions = {"train.bias_activation_fusion": True, "train.cross_entropy_loss_fusion": True}
    fused = ranks.run(world_size, fused_train, tree=tiny_config("fused", **settings, **fusions), until=4)[0]
    assert "SwiGLU" in fused.log and "cross-entropy (native)" in fused.log
    assert fused.losses == pytest.approx(plain.losses, rel=5e-3)
    assert fused.losses != plain.losses  # or nothing was fused
    assert fused.grad_norms == pytest.approx(plain.grad_norms, rel=5e-2)


def fused_train(env, store, **arguments):
    with torch.compiler.set_stance("force_eager"):
        return training.train(env, store, **arguments)
