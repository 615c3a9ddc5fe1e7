"""The quickstart: one bacterial genome from FASTA to a Hugging Face folder, on two CPU cores.

`make demo` runs this. Each stage is an ordinary command (printed before it runs), so each can be typed by
hand; what this file adds is the comparison with count models, the logit check and the summary.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

GENOME = "examples/quickstart/data/NC_017625.1.fa.gz"
CONFIG = "examples/quickstart/gpt.yaml"
OUT = Path("runs/quickstart")
SHARD, RUN, HF, PROOF = OUT / "ecoli", OUT / "gpt", OUT / "gpt-hf", OUT / "verify-resume"
PROMPT = "ATGAAACGCATTAGCACCACCATTACCACC"  # the start of thrL, the first gene of the chromosome


def main() -> int:
    """Run every stage; write runs/quickstart/summary.json, loss.png and a table."""
    warnings.filterwarnings("ignore", module=r"(megatron|torch|transformers)(\.|$)")
    started, seconds = time.perf_counter(), {}

    def command(stage: str, *arguments: object) -> None:
        line = ["dnapretrain", *map(str, arguments)]
        print(f"\n$ {' '.join(line)}", flush=True)
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", *line], check=True)
        seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - begun, 1)

    command("preprocess", "preprocess", GENOME, "--output", SHARD, "--sha256", "--overwrite")
    command("inspect", "inspect", SHARD, "--check")
    stop_at = _half_way()
    if (RUN / "checkpoints").exists():
        print(f"\n{RUN} has checkpoints: its training goes on from there (remove the folder to begin anew)", flush=True)
    else:
        command("pretrain", "pretrain", CONFIG, f"train.stop_at_step={stop_at}")
    command("pretrain", "pretrain", CONFIG)  # finds the checkpoint of the stopped run and goes on
    command("evaluate", "evaluate", RUN)
    command("verify_resume", "verify", "resume", CONFIG, "--steps", 8, "--output", PROOF)
    command("convert", "convert", "to-hf", RUN, HF)
    command("generate", "generate", HF, "--prompt", PROMPT, "--num-bases", 120)

    markov = _timed(seconds, "markov", _markov_ladder)
    logit_difference = _timed(seconds, "logits", _max_logit_difference)
    valid = _last_evaluation()
    summary = {
        "genome": "Escherichia coli K-12 DH1, NC_017625.1",
        "gpt": {
            "valid_bits_per_base": valid["bits_per_base"],
            "valid_bases": valid["num_tokens"],
            "train_tokens": valid["consumed_tokens"],
            "hf_max_abs_logit_diff": logit_difference,
        },
        "markov_bits_per_base": markov,
        "resume_identical": json.loads((PROOF / "proof.json").read_text())["passed"],
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_by_stage": seconds,
    }
    return _report(summary)


def _half_way() -> int:
    from dnapretrain.config import load_config

    return load_config(CONFIG).train.train_steps // 2


def _timed(seconds: dict[str, float], stage: str, work):
    begun = time.perf_counter()
    result = work()
    seconds[stage] = round(time.perf_counter() - begun, 1)
    return result


def _markov_ladder() -> dict[int, float]:
    """Count models of order 0 to 12 on the bases the GPT trained on (both strands), scored on those held out."""
    from dnapretrain.config import load_config
    from dnapretrain.data.samples import held_out_streams, train_stream
    from dnapretrain.data.tokenizers import build_tokenizer
    from dnapretrain.evaluate.markov import markov_ladder

    print("\ncount models of order 0 to 12 on the same bases ...", flush=True)
    config = load_config(CONFIG)
    tokenizer = build_tokenizer(config.tokenizer)
    train, held_out = train_stream(config.data, tokenizer), held_out_streams(config.data, tokenizer)["valid"]
    return markov_ladder(train.segments(), held_out.segments(), both_strands=True)


def _max_logit_difference() -> float:
    """Largest difference between Megatron's logits and those of plain transformers, on held-out sequence."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from dnapretrain.config import load_config
    from dnapretrain.convert.native import find_checkpoint
    from dnapretrain.data.samples import held_out_streams
    from dnapretrain.data.tokenizers import build_tokenizer
    from dnapretrain.train.run import native_logits

    config = load_config(CONFIG)
    stream = held_out_streams(config.data, build_tokenizer(config.tokenizer))["valid"]
    tokens = stream.batch(np.arange(4, dtype=np.int64)).tokens
    logging.disable_progress_bar()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(HF).eval(), AutoTokenizer.from_pretrained(HF)
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    if tokenizer(text)["input_ids"] != tokens[0].tolist():
        raise SystemExit("the exported tokenizer does not give back the tokens of the training data")
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    return float(np.abs(native_logits(find_checkpoint(RUN), tokens) - theirs).max())


def _last_evaluation() -> dict:
    records = [json.loads(line) for line in (RUN / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "eval" and record["set"] == "valid"][-1]


def _report(summary: dict) -> int:
    from dnapretrain.report import loss_curve, markdown_table, summary_rows

    markov, gpt = summary["markov_bits_per_base"], summary["gpt"]
    best = min(markov, key=markov.get)
    loss_curve(RUN, OUT / "loss.png", markov)
    table = markdown_table(summary_rows({"GPT, 0.86 M weights": gpt["valid_bits_per_base"]}, markov))
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    learned = gpt["valid_bits_per_base"] < markov[best]
    print(f"\nheld-out bits per base, {gpt['valid_bases']:,} bases that no model saw\n\n{table}")
    print(
        f"GPT {gpt['valid_bits_per_base']:.4f} against {markov[best]:.4f} of the best count model (order {best}): "
        f"{'learned' if learned else 'NOT LEARNED'}"
    )
    print(f"Hugging Face logits differ from Megatron's by at most {gpt['hf_max_abs_logit_diff']:.2e}")
    print(f"stopped and resumed training identical: {summary['resume_identical']}")
    print(f"seconds: {summary['seconds']} ({', '.join(f'{stage} {value}' for stage, value in summary['seconds_by_stage'].items())})")
    print(f"wrote {OUT / 'summary.json'}, {OUT / 'loss.png'}, {HF}/")
    return 0 if learned and summary["resume_identical"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
