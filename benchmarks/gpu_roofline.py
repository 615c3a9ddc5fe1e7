"""How fast a step could be: its matrix products and its attention timed alone at the model's shapes, the rest by bytes over the
measured copy bandwidth, added up; and the share of that which measured steps reach.

    python benchmarks/gpu_roofline.py --workload generator-1.2b --json build/gpu_check/records.jsonl
    python benchmarks/gpu_roofline.py --workload tiny --device cpu

The sum is a floor for a step that runs these kernels one after another and nothing else; overlap could go below it, fusion of the
memory-bound parts too. --json FILE: records of `gpu_speed.py`, whose steps of the same workload are set against it; its own is added.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_train import commit, row
from gpu_shapes import WORKLOADS, run_config

OPTIMIZER_BYTES = 30
"""Per weight and step: AdamW reads gradient, two moments and main weight (16), writes the last three and the bf16 weight (14)."""
ADD_BYTES = 10
"""Per weight and micro-batch: a bf16 gradient is read and added to an fp32 sum; fused into the product the sum alone is, 8."""
CLIP_BYTES = 12
"""Per weight and step: the norm reads fp32 gradients, zeroing and scaling write them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each kernel (default 20)")
    parser.add_argument("--json", type=Path, help="records of gpu_speed.py to compare with; this one is appended")
    arguments = parser.parse_args()
    record = roofline(arguments)
    measured = [json.loads(line) for line in arguments.json.read_text().splitlines()] if arguments.json and arguments.json.exists() else []
    steps = [item for item in measured if item.get("workload") == arguments.workload and "median_seconds" in item]
    if arguments.json:
        with arguments.json.open("a") as file:
            file.write(json.dumps(record) + "\n")
    print(row(f"roofline of a step, {arguments.workload}", in_words(record)))
    for item in steps:
        floor = record["seconds_fp8"] if "fp8" in item["precision"] and record["seconds_fp8"] else record["seconds"]
        share = f"{floor / item['median_seconds']:.1%} of the roofline ({floor * 1e3:,.1f} of {item['median_seconds'] * 1e3:,.1f} ms)"
        print(row(f"share of the roofline, {arguments.workload}, {item['contestant']}", share))
    return 0


def roofline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part of a step, and their sum."""
    import torch

    from dnapretrain.config import padded_vocab_size
    from dnapretrain.data.tokens.tokenizers import build_tokenizer
    from dnapretrain.model.counts import attention_widths, stored_parameters

    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = run_config(arguments.workload, "torch", Path(), arguments.device)
    model, train = config.model, config.train
    tokenizer = build_tokenizer(config.tokenizer)
    rows, weights = padded_vocab_size(tokenizer.vocab_size), stored_parameters(config, tokenizer.vocab_size, tokenizer.pad_id)
    tokens, passes = train.micro_batch_size * config.data.sequence_length, train.global_batch_size // train.micro_batch_size
    query, key = attention_widths(model)
    ffn = (2 if model.is_gated else 1) * model.ffn_hidden_size
    of_layers = {"qkv": (model.hidden_size, query + 2 * key), "proj": (query, model.hidden_size), "fc1": (model.hidden_size, ffn)}
    of_layers["fc2"] = (model.ffn_hidden_size, model.hidden_size)
    products = {name: (shape, model.num_layers) for name, shape in of_layers.items()} | {"output": ((model.hidden_size, rows), 1)}
    if model.kind == "encoder":
        products["lm_head"] = ((model.hidden_size, model.hidden_size), 1)

    matmuls = {name: times * matmul(tokens, *shape, dtype, device, arguments.repeats) for name, (shape, times) in products.items()}
    fp8 = {
        name: times * matmul_fp8(tokens, *shape, device, arguments.repeats)
        for name, (shape, times) in products.items()
        if name in of_layers
    }
    bandwidth = copy_bandwidth(device, arguments.repeats)
    attention = model.num_layers * attend(config, dtype, device, arguments.repeats)
    traffic = pass_bytes(config, tokens, rows, dtype.itemsize) + ADD_BYTES * weights
    parts = {
        **{f"matmul {name}": passes * seconds for name, seconds in matmuls.items()},
        "attention": passes * attention,
        "memory-bound parts of the passes": passes * traffic / bandwidth,
        "optimizer, norm and zeroing": (OPTIMIZER_BYTES + CLIP_BYTES) * weights / bandwidth,
    }
    total = sum(parts.values())
    saved = sum(passes * (matmuls[name] - seconds) for name, seconds in fp8.items()) if all(fp8.values()) else None
    flops = passes * sum(6 * tokens * inputs * outputs * times for (inputs, outputs), times in products.values())
    return {
        "roofline": arguments.workload,
        "commit": commit(),
        "seconds": total,
        "seconds_fp8": None if saved is None else total - saved,
        "parts": parts,
        "fp8_matmuls": {name: passes * seconds for name, seconds in fp8.items()},
        "copy_bytes_per_second": bandwidth,
        "matmul_tflops": flops / passes / sum(matmuls.values()) / 1e12,
        "tokens_per_second": WORKLOADS[arguments.workload].tokens / total,
    }


def timed(work: Callable[[], Any], device: Any, repeats: int) -> float:
    """Median seconds of `work`, warmed up."""
    import torch

    for _ in range(3):
        work()
    seconds = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def matmul(tokens: int, inputs: int, outputs: int, dtype: Any, device: Any, repeats: int) -> float:
    """Seconds of a linear layer's three products: output, gradient of the input, gradient of the weight."""
    import torch

    x, weight, grad = (torch.randn(shape, dtype=dtype, device=device) for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
    return sum(timed(work, device, repeats) for work in (lambda: x @ weight.T, lambda: grad @ weight, lambda: grad.T @ x))


def matmul_fp8(tokens: int, inputs: int, outputs: int, device: Any, repeats: int) -> float:
    """The same in FP8 by cuBLAS, scaled by tensor, operands already quantised; 0 where it cannot be."""
    import torch

    if device.type != "cuda" or torch.cuda.get_device_capability() < (8, 9) or any(side % 16 for side in (tokens, inputs, outputs)):
        return 0.0
    one, e4m3 = torch.ones((), device=device), torch.float8_e4m3fn

    def product(first: int, inner: int, second: int) -> float:
        a, b = torch.randn(first, inner, device=device).to(e4m3), torch.randn(second, inner, device=device).to(e4m3)
        return timed(lambda: torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16), device, repeats)

    return product(tokens, inputs, outputs) + product(tokens, outputs, inputs) + product(outputs, tokens, inputs)


def attend(config: Any, dtype: Any, device: Any, repeats: int) -> float:
    """Seconds of one layer's attention, forward and backward, by the fastest of torch's kernels."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model, length = config.model, config.data.sequence_length
    shapes = (
        (config.train.micro_batch_size, number, length, model.head_dim) for number in (model.num_attention_heads, *[model.query_groups] * 2)
    )
    query, key, value = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes)
    grad = torch.randn_like(query)

    def work() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=model.kind == "decoder", enable_gqa=model.query_groups != model.num_attention_heads
        )
        torch.autograd.grad(out, (query, key, value), grad)  # adds to no gradients of earlier runs

    best = float("inf")
    backends = (
        (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION) if device.type == "cuda" else (None,)
    )
    for backend in backends:
        try:
            if backend is None:
                best = timed(work, device, repeats)
            else:
                with sdpa_kernel(backend):
                    best = min(best, timed(work, device, repeats))
        except RuntimeError as error:  # a kernel that does not take this shape
            print(f"{backend}: {str(error).splitlines()[0]}")
    if best == float("inf"):
        raise RuntimeError("no kernel of scaled_dot_product_attention takes this shape")
    return best


def copy_bandwidth(device: Any, repeats: int) -> float:
    """Bytes read and written per second by a copy much larger than the caches."""
    import torch

    count = 2**30 if device.type == "cuda" else 2**24
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / timed(lambda: target.copy_(source), device, repeats)


def pass_bytes(config: Any, tokens: int, rows: int, size: int) -> float:
    """Bytes that the parts between the products of one micro-batch move at least, forward and backward, each tensor once per kernel.

    Two norms with the residual's sum (7 and 8 times hidden), rotation (4), the gated activation (8 times ffn), and of the loss the
    logits read and their gradient written, in fp32 between.
    """
    model = config.model
    from dnapretrain.model.counts import attention_widths

    query, key = attention_widths(model)
    rotated = 4 * (query + key) if model.position_embedding_type == "rope" else 0
    layer = 2 * 8 * model.hidden_size + rotated + (8 if model.is_gated else 5) * model.ffn_hidden_size
    return float(tokens * (model.num_layers * layer * size + rows * (2 * size + 8)))


def in_words(record: dict[str, Any]) -> str:
    """The sum, its parts by share, and the two ceilings."""
    total = record["seconds"]
    of_matmuls = sum(seconds for name, seconds in record["parts"].items() if name.startswith("matmul"))
    others = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in record["parts"].items() if not name.startswith("matmul"))
    fp8 = f"; with the layers' products in FP8 {record['seconds_fp8'] * 1e3:,.1f} ms" if record["seconds_fp8"] else ""
    return (
        f"{total * 1e3:,.1f} ms, {record['tokens_per_second']:,.0f} tokens/s: matrix products {of_matmuls / total:.0%} "
        f"(at {record['matmul_tflops']:,.2f} TFLOP/s alone), {others}; copy {record['copy_bytes_per_second'] / 1e12:.3f} TB/s{fp8}"
    )


if __name__ == "__main__":
    sys.exit(main())
