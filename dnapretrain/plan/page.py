"""The plan as one page of text."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

from dnapretrain.errors import ConfigError
from dnapretrain.plan.layouts import layout_tree

SHOWN_LAYOUTS = 8
MEMORY_COLUMNS = ("weights", "gradients", "optimizer", "activations", "working", "allowance")
TIME_NAMES = {
    "matmul": "matmul",
    "attention": "attention",
    "elementwise": "elementwise",
    "quantization": "FP8 casts",
    "launches": "launches",
    "recomputed": "recomputed",
    "tensor_parallel": "tensor p.",
    "context_parallel": "context p.",
    "pipeline_parallel": "pipeline p.",
    "bubble": "bubble",
    "data_parallel": "data p.",
    "optimizer": "optimizer",
}


def format_plan(plan: dict[str, Any]) -> str:
    """The plan as one page of text."""
    gpu, model, run, compute = (plan[key] for key in ("gpu", "model", "run", "compute"))
    parameters = plan["parameters"]
    odd = gpu["count"] % gpu["per_node"] if gpu["count"] > gpu["per_node"] else 0
    lines = [
        f"{gpu['count']:,} x {gpu['kind']}, {gpu['memory_bytes'] / 2**30:.1f} GiB at {gpu['memory_bandwidth'] / 1e12:.2f} TB/s, "
        f"{gpu['bf16_tflops']:,.0f} TFLOP/s (dense bf16{_fp8_peak(plan)}), {gpu['link_bandwidth'] / 1e9:,.0f} GB/s to its node, "
        f"{gpu['network_bandwidth'] / 1e9:,.0f} to others; {gpu['per_node']} per node"
        + (f", of which the last would have {odd}" if odd else ""),
        "",
        f"model        {model['kind']}, {model['num_layers']} layers, hidden {model['hidden_size']:,}, ffn {model['ffn_hidden_size']:,}, "
        f"{model['num_attention_heads']} heads of {model['head_dim']} ({model['query_groups']} key/value), {plan['precision']}"
        + ("" if plan["fp8"] is None else f", products of layers in FP8 ({plan['fp8']})"),
        f"tokens       vocabulary {plan['vocab_size']:,} ({plan['padded_vocab_size']:,} with padding), "
        f"sequence {plan['sequence_length']:,}, {compute['tokens_per_step']:,} tokens per step",
        f"parameters   {parameters['total']:,} ({parameters['stored']:,} with the vocabulary's padding)",
        f"run          {run['steps']:,} steps, {run['samples']:,} samples, {run['tokens']:,} tokens, "
        f"at most {run['bases_at_most']:,} bases",
        f"FLOPs        {compute['flops_per_token']:.4g} per token, {compute['flops_per_step']:.4g} per step, "
        f"{compute['flops_of_run']:.4g} for the run",
        *_storage_lines(plan["storage"]),
        *_assumed_lines(plan["assumed"], gpu["count"], _mfu_peak(plan)),
        *_stage_lines(compute["stages"]),
        "",
        *_layout_table(plan),
        *_best_lines(plan),
    ]
    lines += _wrapped("fits", "GPU memory less what the busiest rank needs; (SP) sequence parallel, (DO) distributed optimizer")
    lines += [line for name in ("order", "bubble", "FLOPs", "MFU", "storage") for line in _wrapped(name, plan["formulas"][name])]
    for name in ("time", "memory"):
        lines += [name]
        lines += [line for part, text in plan["formulas"][name].items() for line in _wrapped(f"  {part}", text)]
    return "\n".join(lines)


def _fp8_peak(plan: dict[str, Any]) -> str:
    return "" if plan["fp8"] is None else f", {plan['gpu']['fp8_tflops']:,.0f} in FP8"


def write_layout(plan: dict[str, Any], file: Path, source: str) -> None:
    """Write the best layout as a settings file, to be laid over `source`. Raises ConfigError where none fits, and for a file that is there
    or that no command would take for settings."""
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--write {file} ends neither in .yaml nor in .yml, as settings files do. Rename it.")
    if file.exists():
        raise ConfigError(f"--write {file} is there already. Remove it, or give another name.")
    if not plan["best_layouts"]:
        if not plan["legal_layouts"]:
            raise ConfigError(f"no layout is legal, so {file} was not written. Change train.global_batch_size or --gpus.")
        raise ConfigError(f"no legal layout fits, so {file} was not written. Use more GPUs, or GPUs with more memory.")
    best, gpu = plan["best_layouts"][0], plan["gpu"]
    head = (
        f"# The first layout of `dnapretrain plan {source} --gpus {gpu['count']} --gpu {gpu['kind']}`: "
        f"{best['total_bytes'] / 2**30:.0f} GiB of {gpu['memory_bytes'] / 2**30:.0f} by formula.\n"
        f"# dnapretrain pretrain {source} {file.name}\n"
    )
    file.write_text(head + yaml.safe_dump(layout_tree(best), sort_keys=False))


def _layout_table(plan: dict[str, Any]) -> list[str]:
    best, own = plan["best_layouts"], plan["own_layout"]
    fitting, num_legal = sum(layout["fits"] for layout in plan["legal_layouts"]), len(plan["legal_layouts"])
    lines = [
        f"{num_legal:,} legal layouts (tp x cp x pp x vpp x micro-batch x recompute), {fitting:,} fit; seconds per step of this program by "
        "formula, GiB of the busiest rank:",
        f"{'tp':>4}{'cp':>4}{'pp':>4}{'vpp':>4}{'dp':>6}{'mbs':>5}{'x':>5} {'recompute':<9} | {'s/step':>7} {'tokens/s':>11} {'MFU':>5} "
        f"{'days':>6} {'bubble':>6} | {'weights':>7} {'grads':>6} {'main+moments':>12} {'activations':>11} {'working':>7} "
        f"{'allowance':>9} {'total':>6} | fits",
    ]
    if own is None:
        lines.append(f"the file's layout is not legal here: {plan['own_layout_problem']}")
    shown = best[:SHOWN_LAYOUTS]
    if own is not None and not any(_same(own, layout) for layout in shown):
        shown = [own, *shown]
    lines += [_table_row(layout) + ("  <- the file's" if own is not None and _same(own, layout) else "") for layout in shown]
    if len(best) > SHOWN_LAYOUTS:
        lines.append(f"    and {len(best) - SHOWN_LAYOUTS} more tp x cp x pp that fit (--json has all)")
    if not num_legal:
        lines.append("    no layout is legal: change train.global_batch_size or the number of GPUs; what each breaks stands below")
    elif not best:
        lines.append("    no legal layout fits: use more GPUs, GPUs with more memory, or a shorter data.sequence_length")
    if plan["refused"]:
        lines += ["", f"{sum(plan['refused'].values()):,} combinations of tp, cp, pp, vpp and micro-batch are not legal:"]
        lines += [f"{count:>6,}  {rule}" for rule, count in plan["refused"].items()]
    return [*lines, ""]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two layouts are the same settings."""
    return bool(one["overrides"] == other["overrides"] and one["layers"] == other["layers"])


def _three(value: float) -> str:
    """Three digits, zeros too: a column of 1.21 and 1.20."""
    return f"{value:#.3g}".rstrip(".")


def _table_row(layout: dict[str, Any]) -> str:
    weights, gradients, optimizer, activations, working, allowance = (layout["memory"][part] / 2**30 for part in MEMORY_COLUMNS)
    free = layout["free_bytes"] / 2**30
    verdict = f"yes, {free:.1f} free" if layout["fits"] else f"NO, {-free:.1f} too much"
    layers = layout["layers"]
    uneven = f", layers {'+'.join(map(str, layers))}" if len(set(layers)) > 1 else ""
    marks = (" (SP)" if layout["sequence_parallel"] else "") + (" (DO)" if layout["use_distributed_optimizer"] else "")
    speed = f"{'-':>7} {'-':>11} {'-':>5} {'-':>6}"
    if layout["seconds_per_step"] is not None:
        step, days = _three(layout["seconds_per_step"]), _three(layout["days"])
        speed = f"{step:>7} {layout['tokens_per_second']:>11,.0f} {layout['mfu']:>5.1%} {days:>6}"
    way = f", {layout['cp_comm_type']}" if layout["cp_comm_type"] != "p2p" else ""
    return (
        f"{layout['tp']:>4}{layout['cp']:>4}{layout['pp']:>4}{layout['vpp'] or '-':>4}{layout['dp']:>6}{layout['micro_batch_size']:>5}"
        f"{layout['num_microbatches']:>5} {layout['recompute']:<9} | {speed} {layout['bubble']:>6.1%} | {weights:>7.2f} {gradients:>6.2f} "
        f"{optimizer:>12.2f} {activations:>11.2f} {working:>7.2f} {allowance:>9.2f} {layout['total_bytes'] / 2**30:>6.1f} | "
        f"{verdict}{marks}{way}{uneven}"
    )


def _best_lines(plan: dict[str, Any]) -> list[str]:
    """The first layout: where its step goes, what its activations are, and the settings to paste."""
    if not plan["best_layouts"]:
        return []
    best = plan["best_layouts"][0]
    memory, lines = best["memory"], []
    if best["time"] is not None:
        total = best["seconds_per_step"]
        parts = [f"{name} {best['time'][part] / total:.1%}" for part, name in TIME_NAMES.items() if best["time"][part] >= 0.0005 * total]
        lines += _wrapped("its step", ", ".join(parts))
        lines += _wrapped(
            "its run",
            f"{best['days']:,.3g} days, {best['gpu_hours']:,.0f} GPU-hours, {best['tokens_per_second']:,.0f} tokens/s, "
            f"MFU {best['mfu']:.1%} of {_mfu_peak(plan)}",
        )
    chunk = memory["layers"] // (best["vpp"] or 1)
    lines += _wrapped(
        "its memory",
        f"pipeline rank {memory['pp_rank']} has {memory['parameters']:,} parameters; its activations are those of "
        f"{memory['chunks_in_flight']} micro-batch(es) in {chunk} layers of {memory['layer_activations'] / 2**20:,.0f} MiB, and of what "
        "lies before and behind the layers",
    )
    return [*lines, f"as settings    {' '.join(best['overrides'])}", ""]


def _storage_lines(storage: dict[str, Any]) -> list[str]:
    read, size = storage["bytes_read_per_second"], storage["checkpoint_bytes"]
    reading = "" if read is None else f"{read / 1e6:,.3g} MB/s of shards read by the first layout; "
    return [
        f"disk         {reading}a checkpoint has {size / 1e9:,.4g} GB, written in {storage['checkpoint_seconds']:,.2g} s, training waits "
        f"{storage['checkpoint_pause_seconds']:,.2g} s of them"
    ]


def _mfu_peak(plan: dict[str, Any]) -> str:
    """The peak that MFU is a share of, in words."""
    return f"{plan['gpu']['mfu_tflops']:,.0f} TFLOP/s (dense {'bf16' if plan['fp8'] is None else 'FP8'})"


def _assumed_lines(assumed: dict[str, Any] | None, num_gpus: int, peak: str) -> list[str]:
    if assumed is None:
        return []
    if assumed["days"] is None:
        return ["--mfu        nothing said for fp32: the data sheet's peak is that of bf16"]
    return [
        f"--mfu        at {assumed['mfu']:.0%} of {peak}: {assumed['seconds_per_step']:,.3g} s per step, "
        f"{assumed['tokens_per_second']:,.0f} tokens/s, {assumed['days']:,.3g} days, {assumed['days'] * 24 * num_gpus:,.0f} GPU-hours"
    ]


def _stage_lines(stages: list[dict[str, Any]]) -> list[str]:
    """The lengths of a run that has several."""
    if len(stages) == 1:
        return []
    lines = ["lengths      a step here is one of the longest samples, and memory is that of the longest stage; days are those of all"]
    for stage in stages:
        lines.append(
            f"             from step {stage['from_step']:,}: sequence {stage['sequence_length']:,}, {stage['samples']:,} samples, "
            f"{stage['tokens_per_step']:,} tokens per step, {stage['flops_per_token']:.4g} FLOPs per token"
        )
    return lines


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(f"{name:<15}{text}", 150, subsequent_indent=" " * 15)
