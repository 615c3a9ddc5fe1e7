"""Speed of training one workload one way, in a process of its own: tokens/s, TFLOP/s, peak memory beside the planner's figure.

    python benchmarks/gpu_speed.py --workload generator-1.2b --contestant te-fp8
    python benchmarks/gpu_speed.py --workload tiny --contestant minimal --device cpu --steps 2 --warm-up 1

Prints a row for BENCHMARKS.md; --json FILE appends the whole record as a line. Each contestant has its process, so that one that breaks
costs no other's number, and peak memory is its own; all have the same shape, batch and data. A step is timed from the reading of its
batch to the end of its update, the device synchronised on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_train import commit, no_transformer_engine, row, unwrapped
from gpu_shapes import OURS, RIVALS, SEED, WORKLOADS, flops_per_step, run_config, write_shard


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--contestant", choices=(*OURS, *RIVALS), required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=8, help="timed steps (default 8)")
    parser.add_argument("--warm-up", type=int, default=6, help="steps before those (default 6: compilation and captures are within them)")
    parser.add_argument("--json", type=Path, help="append the record to this file, one JSON object per line")
    arguments = parser.parse_args()
    if reason := why_not(arguments.workload, arguments.contestant, arguments.device):
        print(f"SKIPPED: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu_speed_") as folder:
        write_shard(Path(folder))
        record = measure(arguments, Path(folder))
    if arguments.json:
        with arguments.json.open("a") as file:
            file.write(json.dumps(record) + "\n")
    print(row(f"training step, {record['workload']}: {record['shape']}, {record['contestant']}", in_words(record)))
    return 0


def why_not(workload: str, contestant: str, device: str) -> str:
    """Why this cannot be measured here; empty where it can."""
    from minimal_model import fits

    model = run_config(workload, "torch", Path(), device).model
    if contestant in OURS and contestant.startswith("te") and (reason := no_transformer_engine(device == "cuda")):
        return reason
    if contestant == "minimal" and not fits(model):
        return "the minimal model has no such shape"
    if contestant.startswith("transformers") and model.kind == "encoder" and "aido" not in workload:
        return "transformers has no code of its own for this shape"
    if contestant in OURS and any("cuda_graph" in setting for setting in OURS[contestant]) and model.kind == "encoder":
        return "CUDA graphs are for decoders"
    return ""


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build, warm up and time one contestant; the record of it."""
    import torch

    from dnapretrain.model.memory import rank_memory
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups, stop_groups
    from dnapretrain.train.run import open_data

    platform = platforms.start(arguments.device)
    config = run_config(arguments.workload, arguments.contestant, folder, arguments.device)
    data = open_data(config)
    start_groups(platform, config.parallel, SEED, cuda_graphs=config.train.cuda_graph_impl != "none")
    try:
        builder = ours if arguments.contestant in OURS else rival
        step, num_weights = builder(arguments.contestant, config, data, platform)
        losses = [step() for _ in range(arguments.warm_up)]
        if platform.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = [timed(step, platform.is_cuda) for _ in range(arguments.steps)]
    finally:
        stop_groups()
    flops, vocab_size = flops_per_step(config, data.tokenizer.vocab_size), data.tokenizer.vocab_size
    median, work = statistics.median(seconds), WORKLOADS[arguments.workload]
    has_fp8 = config.train.fp8 != "none"
    return {
        "workload": arguments.workload,
        "contestant": arguments.contestant,
        "shape": f"{config.model.num_layers} layers, hidden {config.model.hidden_size}, "
        f"{work.global_batch_size} x {work.sequence_length} tokens per step in micro-batches of {work.micro_batch_size}",
        "device": platform.name,
        "commit": commit(),
        "torch": torch.__version__,
        "num_weights": num_weights,
        "precision": f"fp8 {config.train.fp8_recipe}" if has_fp8 else config.train.precision,
        "losses": losses,
        "seconds": seconds,
        "median_seconds": median,
        "tokens_per_second": work.tokens / median,
        "tflops": flops / median / 1e12,
        **share_of_peak(config, platform.name, flops / median / 1e12),
        "peak_bytes": torch.cuda.max_memory_allocated() if platform.is_cuda else None,
        "reserved_bytes": torch.cuda.max_memory_reserved() if platform.is_cuda else None,
        "planned_bytes": rank_memory(config, vocab_size, data.tokenizer.pad_id, 1, 0).total if arguments.contestant in OURS else None,
    }


def share_of_peak(config: Any, device_name: str, tflops: float) -> dict[str, Any]:
    """MFU, and in words the peak that it is a share of: both as the trainer's log has them, so that FP8 is held against the FP8 peak."""
    from dnapretrain.train.metrics import peak_of_rank

    peak, of_what = peak_of_rank(config, device_name)
    return {"mfu": tflops / peak if peak else None, "mfu_peak": of_what}


def timed(step: Callable[[], float], is_cuda: bool) -> float:
    """Seconds of one step."""
    import torch

    if is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ours(contestant: str, config: Any, data: Any, platform: Any) -> tuple[Callable[[], float], int]:
    """(a step of our trainer that gives its loss, number of weights)."""
    from dnapretrain.model.build import named_weights
    from dnapretrain.train.run import build_trainer

    del contestant
    trainer = build_trainer(config, platform, data)
    told: list[str] = []

    def step() -> float:
        loss: float = trainer.train_step(trainer.next_batches()).loss
        if not told:
            told.append(trainer.kernels.attention() or "")
            print(told[0])
        return loss

    return step, sum(weight.numel() for _, weight in named_weights([unwrapped(chunk) for chunk in trainer.chunks]))


def rival(contestant: str, config: Any, data: Any, platform: Any) -> tuple[Callable[[], float], int]:
    """The same for a plain torch loop: fp32 weights, bf16 autocast on CUDA, fused AdamW, clipping."""
    import numpy as np
    import torch

    from dnapretrain.model.batches import BatchPlace

    torch.manual_seed(SEED)
    model = rival_model(contestant, config, data).to(platform.device).train()
    num_weights = sum(weight.numel() for weight in model.parameters())
    forward: Any = model
    if contestant in ("transformers-compiled", "minimal"):
        forward = torch.compile(model, backend="inductor" if platform.is_cuda else "eager")
    optim, train = config.optim, config.train
    optimizer = torch.optim.AdamW(
        model.parameters(), optim.lr, (optim.adam_beta1, optim.adam_beta2), optim.adam_eps, optim.weight_decay, fused=platform.is_cuda
    )
    place = BatchPlace(train.micro_batch_size, 0, 1, platform.device, (True,), data.tokenizer.pad_id, bidirectional=config.is_masked)
    position = [0]

    def step() -> float:
        first, position[0] = position[0], position[0] + train.global_batch_size
        batches = [
            place.take(data.train.batch(np.arange(start, start + train.micro_batch_size, dtype=np.int64)))
            for start in range(first, position[0], train.micro_batch_size)
        ]
        num_targets = torch.stack([batch.loss_mask_BS.sum() for batch in batches]).sum()
        total = torch.zeros((), device=platform.device)
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with torch.autocast(platform.device.type, torch.bfloat16, enabled=platform.is_cuda):
                logits = forward(batch.tokens_BS)
            logits_BSV = getattr(logits, "logits", logits)
            losses = torch.nn.functional.cross_entropy(logits_BSV.float().flatten(0, 1), batch.labels_BS.flatten(), reduction="none")
            loss = (losses * batch.loss_mask_BS.flatten()).sum() / num_targets
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_grad)
        optimizer.step()
        return float(total)

    return step, num_weights


def rival_model(contestant: str, config: Any, data: Any) -> Any:
    """A model of the same shape in `transformers` (Llama; AIDO.DNA by the code that exported folders ship), or the minimal one."""
    from dnapretrain.config import padded_vocab_size

    model, length, rows = config.model, config.data.sequence_length, padded_vocab_size(data.tokenizer.vocab_size)
    if contestant == "minimal":
        from minimal_model import MinimalModel

        return MinimalModel(model, rows, length)
    shape = {
        "vocab_size": rows,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "max_position_embeddings": length,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
    }
    if model.kind == "encoder":
        from dnapretrain.convert.shipped.configuration_rnabert import RNABertConfig
        from dnapretrain.convert.shipped.modeling_rnabert import RNABertForMaskedLM

        return RNABertForMaskedLM(RNABertConfig(**shape))
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=model.query_groups, use_cache=False, attn_implementation="sdpa"))


def in_words(record: dict[str, Any]) -> str:
    """The numbers of a record, as a row has them."""
    seconds = record["seconds"]
    share = f" (MFU {record['mfu']:.1%} of {record['mfu_peak']})" if record["mfu"] else ""
    memory = ""
    if record["peak_bytes"]:
        planned = f"; planned {record['planned_bytes'] / 2**30:.1f}" if record["planned_bytes"] else ""
        memory = f", peak memory {record['peak_bytes'] / 2**30:.1f} GiB (reserved {record['reserved_bytes'] / 2**30:.1f}{planned})"
    return (
        f"{record['median_seconds'] * 1e3:,.1f} ms (median of {len(seconds)}, {min(seconds) * 1e3:,.1f}-{max(seconds) * 1e3:,.1f}), "
        f"{record['tokens_per_second']:,.0f} tokens/s, {record['tflops']:,.2f} TFLOP/s{share}, {record['precision']}, "
        f"{record['num_weights'] / 1e6:,.1f} M weights{memory}; loss {record['losses'][0]:.3f} to {record['losses'][-1]:.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
