"""The quickstart: one bacterial genome from FASTA to a Hugging Face folder, on two CPU cores.

`make demo` runs this. Each stage is an ordinary command (printed before it runs), so each can be typed by
hand; what this file adds is the comparison with count models, the logit checks and the summary.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

GENOME = "examples/quickstart/data/NC_017625.1.fa.gz"
GPT, BERT = "examples/quickstart/gpt.yaml", "examples/quickstart/bert.yaml"
OUT = Path("runs/quickstart")
SHARD, PROOF = OUT / "ecoli", OUT / "verify-resume"
FLANK_MODEL = "count model, {} on each side"
PROMPT = "ATGAAACGCATTAGCACCACCATTACCACC"  # the start of thrL, the first gene of the chromosome


def main() -> int:
    """Run every stage; write runs/quickstart/summary.json, two loss curves and two tables."""
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
    if (_run_of(GPT) / "checkpoints").exists():
        print(f"\n{_run_of(GPT)} has checkpoints: its training goes on from there (remove the folder to begin anew)", flush=True)
    else:
        command("pretrain_gpt", "pretrain", GPT, f"train.stop_at_step={stop_at}")
    command("pretrain_gpt", "pretrain", GPT)  # finds the checkpoint of the stopped run and goes on
    command("pretrain_bert", "pretrain", BERT)
    command("evaluate", "evaluate", _run_of(GPT))
    command("verify_resume", "verify", "resume", GPT, "--steps", 8, "--output", PROOF)
    for config in (GPT, BERT):
        command("convert", "convert", "to-hf", _run_of(config), _hf_of(config))
    command("generate", "generate", _hf_of(GPT), "--prompt", PROMPT, "--num-bases", 120)

    print("\ncount models on the same bases ...", flush=True)
    markov, flanks = _timed(seconds, "count_models", _count_models)
    differences = _timed(seconds, "logits", lambda: {config: _max_logit_difference(config) for config in (GPT, BERT)})
    gpt, bert = _last_evaluation(GPT), _last_evaluation(BERT)
    summary = {
        "genome": "Escherichia coli K-12 DH1, NC_017625.1",
        "gpt": {
            "valid_bits_per_base": gpt["bits_per_base"],
            "valid_bases": gpt["num_targets"],
            "train_tokens": gpt["consumed_tokens"],
            "hf_max_abs_logit_diff": differences[GPT],
        },
        "markov_bits_per_base": markov,
        "bert": {
            "valid_masked_bits_per_base": bert["bits_per_base"],
            "valid_masked_accuracy": bert["accuracy"],
            "valid_masked_bases": bert["num_targets"],
            "train_tokens": bert["consumed_tokens"],
            "hf_max_abs_logit_diff": differences[BERT],
        },
        "flank_bits_per_base": flanks,
        "resume_identical": json.loads((PROOF / "proof.json").read_text())["passed"],
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_by_stage": seconds,
    }
    return _report(summary)


def _run_of(config: str) -> Path:
    return OUT / Path(config).stem


def _hf_of(config: str) -> Path:
    return OUT / f"{Path(config).stem}-hf"


def _half_way() -> int:
    from dnapretrain.config_file import load_config

    return load_config(GPT).train.train_steps // 2


def _timed(seconds: dict[str, float], stage: str, work):
    begun = time.perf_counter()
    result = work()
    seconds[stage] = round(time.perf_counter() - begun, 1)
    return result


def _count_models() -> tuple[dict[int, float], dict[int, float]]:
    """Bits per base of count models fitted on the bases that the models trained on (both strands), scored on those held out.

    By order (0 to 12 bases on the left), and by number of flanks (1 to 5 bases on each side).
    """
    from dnapretrain.config_file import load_config
    from dnapretrain.data.sampling.run_data import open_data
    from dnapretrain.evaluate.flank import flank_ladder
    from dnapretrain.evaluate.markov import markov_ladder

    data = open_data(load_config(GPT))
    train, held_out = list(data.train.segments()), list(data.held_out["valid"].segments())
    return markov_ladder(train, held_out, both_strands=True), flank_ladder(train, held_out, both_strands=True)


def _max_logit_difference(config_file: str) -> float:
    """Largest difference between Megatron's logits and those of plain transformers, on held-out sequence."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    from dnapretrain.config_file import load_config
    from dnapretrain.convert.native import find_checkpoint
    from dnapretrain.data.sampling.run_data import open_data
    from dnapretrain.train.run import native_logits

    config, folder = load_config(config_file), _hf_of(config_file)
    batch = open_data(config).held_out["valid"].batch(np.arange(4, dtype=np.int64))
    logging.disable_progress_bar()
    loader = AutoModelForMaskedLM if config.is_masked else AutoModelForCausalLM
    model, tokenizer = loader.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    text = tokenizer.decode(batch.tokens[0], skip_special_tokens=False).removeprefix(tokenizer.bos_token)
    if tokenizer(text)["input_ids"] != batch.tokens[0].tolist():
        raise SystemExit("the exported tokenizer does not give back the tokens of the training data")
    with torch.no_grad():
        theirs = model(torch.from_numpy(batch.tokens)).logits.numpy()
    return float(np.abs(native_logits(find_checkpoint(_run_of(config_file)), batch.tokens) - theirs).max())


def _last_evaluation(config: str) -> dict:
    records = [json.loads(line) for line in (_run_of(config) / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "eval" and record["set"] == "valid"][-1]


def _report(summary: dict) -> int:
    from dnapretrain.report.curve import loss_curve
    from dnapretrain.report.page import write_report
    from dnapretrain.report.tables import markdown_table, summary_rows

    gpt, bert = summary["gpt"], summary["bert"]
    markov, flanks = summary["markov_bits_per_base"], summary["flank_bits_per_base"]
    best = min(markov, key=markov.get)
    loss_curve(_run_of(GPT), OUT / "loss.png", {f"best count model (order {best})": markov[best]})
    loss_curve(_run_of(BERT), OUT / "bert-loss.png", {FLANK_MODEL.format(number): flanks[number] for number in (1, 4)})
    page, *_ = write_report(_run_of(GPT), _run_of(GPT) / "report.html")
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    causal, masked = gpt["valid_bits_per_base"], bert["valid_masked_bits_per_base"]
    print(f"\nheld-out bits per base, {gpt['valid_bases']:,} bases that no model saw, each predicted from its left\n")
    print(markdown_table(summary_rows({"GPT, 0.86 M weights": causal}, markov)))
    print(f"{bert['valid_masked_bases']:,} of them masked, predicted from both sides (count models see every neighbour, the BERT 85 %)\n")
    print(markdown_table(summary_rows({"BERT, 0.81 M weights": masked}, flanks, FLANK_MODEL)))
    learned = causal < markov[best] and masked < flanks[1]
    print(f"GPT {causal:.4f} against {markov[best]:.4f} of the best count model (order {best})")
    print(f"BERT {masked:.4f} against {flanks[1]:.4f} of the {FLANK_MODEL.format(1)}: {'learned' if learned else 'NOT LEARNED'}")
    for name, model in (("GPT", gpt), ("BERT", bert)):
        print(f"{name}: Hugging Face logits differ from Megatron's by at most {model['hf_max_abs_logit_diff']:.2e}")
    print(f"stopped and resumed training identical: {summary['resume_identical']}")
    print(f"seconds: {summary['seconds']} ({', '.join(f'{stage} {value}' for stage, value in summary['seconds_by_stage'].items())})")
    print(f"wrote {OUT / 'summary.json'}, {OUT / 'loss.png'}, {OUT / 'bert-loss.png'}, {page}, {_hf_of(GPT)}/, {_hf_of(BERT)}/")
    return 0 if learned and summary["resume_identical"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
