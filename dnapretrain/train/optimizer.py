"""AdamW and its schedule, through Megatron-core's optimizers.

Transformer Engine's or Apex's fused Adam is used where installed, else torch's AdamW. Two faults of
Megatron-core's distributed optimizer with torch's AdamW are mended here (`_mend_step_of_torch_adamw`).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from dnapretrain.config import OptimConfig, RunConfig
from dnapretrain.parallel import foreach_kernels


def build_optimizer(config: RunConfig, chunks: list[DistributedDataParallel]) -> Any:
    """Megatron's optimizer over this rank's chunks; weight decay skips norms and biases (one-dimensional weights)."""
    optim = config.optim
    foreach_kernels.use_where_megatron_has_none()
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            min_lr=optim.min_lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.adam_beta1,
            adam_beta2=optim.adam_beta2,
            adam_eps=optim.adam_eps,
            clip_grad=optim.clip_grad,
            bf16=config.train.precision == "bf16",
            params_dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
            use_distributed_optimizer=config.parallel.use_distributed_optimizer,
            overlap_param_gather=config.parallel.overlap_param_gather,
        ),
        chunks,
        use_gloo_process_groups=False,
    )
    for part in optimizer.chained_optimizers:
        if isinstance(part.optimizer, torch.optim.AdamW):
            _use_fused_kernel(part.optimizer)
            if isinstance(part, DistributedOptimizer):
                _mend_step_of_torch_adamw(part)
    return optimizer


def build_schedule(config: RunConfig, optimizer: Any) -> OptimizerParamScheduler:
    """Megatron's schedule, counted in samples, so that it does not depend on the batch size of a step.

    Numbers of steps become the samples that so many steps read, smaller first batches included.
    """
    optim, decay_steps = config.optim, config.lr_decay_steps
    decay_samples = config.samples_after(decay_steps)
    wsd_decay_steps = optim.lr_wsd_decay_steps or max(1, decay_steps // 10)
    wsd_decay_samples = decay_samples - config.samples_after(decay_steps - wsd_decay_steps)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=optim.lr_warmup_init,
        max_lr=optim.lr,
        min_lr=optim.min_lr,
        lr_warmup_steps=config.samples_after(optim.lr_warmup_steps),
        lr_decay_steps=decay_samples,
        lr_decay_style=optim.lr_decay_style,
        start_wd=optim.weight_decay,
        end_wd=optim.weight_decay,
        wd_incr_steps=decay_samples,
        wd_incr_style="constant",
        wsd_decay_steps=wsd_decay_samples if optim.lr_decay_style == "WSD" else None,
        lr_wsd_decay_style=optim.lr_wsd_decay_style if optim.lr_decay_style == "WSD" else None,
    )


def allocate_state(optimizer: Any) -> None:
    """Make the optimizer's state tensors, which must exist before a checkpoint is read into them."""
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer or part.optimizer.state:
            continue
        if isinstance(part, DistributedOptimizer):
            part._init_optimizer_states_with_dummy_values()
            _separate_steps(part)
        else:
            part.init_state_fn(part.optimizer, part.config)


@torch.no_grad()
def set_main_weights(optimizer: Any, weight: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Give the fp32 main weight of `weight` this value, or the part of it that this data-parallel rank holds; nothing where it has none.

    The optimizer made it from the weight, which is rounded to bf16.
    """
    main = getattr(weight, "main_param", None)
    if main is None:
        return
    if getattr(weight, "main_param_sharded", False):
        (part,) = optimizer.chained_optimizers
        part_of_rank = part._get_model_param_range_map(weight)["param"]
        value = value.reshape(-1)[part_of_rank.start : part_of_rank.end]
    main.copy_(value)


def use_settings(optimizer: Any, optim: OptimConfig) -> None:
    """Take learning rates, betas and eps from the settings: a loaded state brings back those it was written with."""
    for group in optimizer.param_groups:
        group.update(max_lr=optim.lr, min_lr=optim.min_lr, betas=(optim.adam_beta1, optim.adam_beta2), eps=optim.adam_eps)
    for part in optimizer.chained_optimizers:
        if isinstance(part.optimizer, torch.optim.AdamW):
            _use_fused_kernel(part.optimizer)


def adopt_loaded_state(optimizer: Any, loaded: dict[str, Any]) -> None:
    """Change `loaded`, read from a checkpoint, so that this optimizer can take it whichever Adam wrote it.

    torch's AdamW counts its updates per weight, the fused Adam of Transformer Engine and of Apex per group.
    """
    (part,) = optimizer.chained_optimizers
    if part.is_stub_optimizer:
        return
    inner = loaded.get("optimizer", loaded)
    groups, states = inner["param_groups"], inner.get("state", {})
    counts = [source[key] for source, key in ((states, "common_step"), *((group, "step") for group in groups)) if key in source]
    if not counts:  # no update was made yet
        return
    step = int(max(float(count) for count in counts))
    per_weight = isinstance(part.optimizer, torch.optim.AdamW) and not isinstance(part, DistributedOptimizer)
    states.pop("common_step", None)
    if per_weight:
        states["common_step"] = torch.tensor(float(step))
    for group in groups:
        group.pop("step", None)
        if not per_weight:
            group["step"] = step
        for key, value in part.optimizer.param_groups[0].items():
            if key != "params":
                group.setdefault(key, value)


def _use_fused_kernel(optimizer: torch.optim.AdamW) -> None:
    """Let torch's AdamW update each weight in one pass over its memory, on CPU and on CUDA; its plain way makes about ten.

    Also after a load: a checkpoint of the plain way says so, and counts its updates on the CPU.
    """
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)
    for weight, state in optimizer.state.items():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].to(weight.device, torch.float32)


def _mend_step_of_torch_adamw(part: DistributedOptimizer) -> None:
    """Keep torch AdamW's per-parameter `step` right when a fully reshardable checkpoint is loaded.

    Megatron-core 0.16.1 (a) looks for `step` among the saved tensors, where it is not, and (b) gives one
    step tensor to all parameters, which AdamW then advances once per parameter.
    """
    load_state_dict = part.load_state_dict

    def load_with_separate_steps(self: DistributedOptimizer, state_dict: Any) -> None:
        load_state_dict(state_dict)
        _separate_steps(self)

    def set_states(self: DistributedOptimizer, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        main_param = self.optimizer.param_groups[group]["params"][order]
        with torch.no_grad():
            main_param.copy_(tensors["param"])
            for key, value in self.optimizer.state[main_param].items():
                if key != "step":
                    value.copy_(tensors[key])

    part.load_state_dict = MethodType(load_with_separate_steps, part)
    part._set_main_param_and_optimizer_states = MethodType(set_states, part)


def _separate_steps(part: DistributedOptimizer) -> None:
    for state in part.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
