"""The planner's check of itself: weights counted on the real model chunks of a job's ranks, built without memory. Needs torch."""

from __future__ import annotations

from dnapretrain.config import RunConfig
from dnapretrain.config_rules import check_world
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.model.counts import rank_parameters


def check_counts(config: RunConfig, tokenizer: Tokenizer, world_size: int, every_rank: bool = False) -> list[dict[str, int]]:
    """Parameters by the closed formula, and counted on the real model chunks, built as each rank of `world_size` would build them.

    Of every pipeline and tensor-parallel rank, or of `every_rank` of the job: those that share weights included.
    Raises ConfigError when the layout does not fit `world_size` ranks.
    """
    from dnapretrain.model.rank_player import count_parameters, played_chunks

    check_world(config, world_size)
    parallel, rows = config.parallel, []
    tp, in_stage = parallel.tensor_model_parallel_size, world_size // parallel.pipeline_model_parallel_size
    for rank in range(world_size):
        pp_rank, tp_rank = rank // in_stage, rank % tp
        if rank % in_stage >= tp and not every_rank:
            continue
        with played_chunks(config, tokenizer, rank, world_size) as chunks:
            counted = count_parameters(chunks)
        formula = rank_parameters(config, tokenizer.vocab_size, tokenizer.pad_id, pp_rank)
        rows.append({"rank": rank, "pp_rank": pp_rank, "tp_rank": tp_rank, "formula": formula, "model": counted})
    return rows


def format_check(rows: list[dict[str, int]]) -> str:
    """What `check_counts` found, one line per pipeline rank."""
    lines = ["parameters per rank: closed formula against the real model chunks"]
    for pp_rank in sorted({row["pp_rank"] for row in rows}):
        of_stage = [row for row in rows if row["pp_rank"] == pp_rank]
        different = [row for row in of_stage if row["formula"] != row["model"]]
        verdict = f"DIFFERENT on rank {different[0]['rank']}: {different[0]['model']:,}" if different else "equal"
        lines.append(f"pipeline rank {pp_rank:>3}: {of_stage[0]['formula']:>14,} on each of {len(of_stage)} rank(s): {verdict}")
    return "\n".join(lines)
