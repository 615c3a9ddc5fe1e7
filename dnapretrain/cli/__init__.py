"""The command line: `dnapretrain VERB`. Each verb parses, calls one function and prints.

Implementations are imported when their verb runs, so that `--help`, `preprocess` and `inspect` start
without torch.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dnapretrain import __version__
from dnapretrain.cli import adapt, audit, evaluate, finetune, generate, models, runs, score, sequence, simulate, slurm
from dnapretrain.errors import DnaPretrainError

Verb = Callable[[argparse.Namespace], int]

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Failures of writing that name no file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code. Errors of the user are one line on stderr."""
    parsed = _parse(arguments)
    # Which path each part takes is logged once in our own words; the libraries' warnings say it again per rank.
    warnings.filterwarnings("ignore", module=r"(megatron|torch|transformers)(\.|$)")
    verb: Verb = parsed.verb
    try:
        return verb(parsed)
    except DnaPretrainError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, `dnapretrain inspect | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        return 0
    except ImportError as error:
        if "_core" not in str(error):
            raise
        sys.stderr.write(
            "error: the native core is not built. Run `pip install -e .` or `python setup.py build_ext --inplace` in the clone.\n"
        )
        return DnaPretrainError.exit_code
    except OSError as error:
        if error.filename is None and error.errno not in FULL_DISK:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.stderr.write(f"error: {where}{error.strerror}. Check the path, its permissions and the free space.\n")
        return DnaPretrainError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped by the user\n")
        return 130


class _Parser(argparse.ArgumentParser):
    """Errors are one line, like all others; options are not guessed from their first letters."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.exit(DnaPretrainError.exit_code, f"error: {message}. See {self.prog} --help.\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. Settings may stand before and after options; argparse takes only those before."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest:
        last = next((name for name in ("overrides", "loci") if hasattr(parsed, name)), None)
        if last is None or any(argument.startswith("-") for argument in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        getattr(parsed, last).extend(rest)
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dnapretrain", description="From FASTA files to a DNA language model, and out to Hugging Face.")
    parser.add_argument("--version", action="version", version=f"dnapretrain {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for add in (
        sequence.add_corpus,
        sequence.add_lint,
        sequence.add_preprocess,
        sequence.add_merge,
        sequence.add_haplotypes,
        sequence.add_extract,
        sequence.add_inspect,
        audit.add_locate,
        audit.add_was_seen,
        audit.add_coverage,
        audit.add_dedup,
        audit.add_cluster,
        audit.add_leakage,
        sequence.add_train_bpe,
        runs.add_recipes,
        runs.add_pretrain,
        evaluate.add_evaluate,
        models.add_convert,
        generate.add_generate,
        generate.add_recovery,
        generate.add_design,
        generate.add_check_cds,
        adapt.add_embed,
        adapt.add_probe,
        score.add_score,
        finetune.add_finetune,
        finetune.add_predict,
        finetune.add_benchmark,
        runs.add_plan,
        simulate.add_simulate,
        slurm.add_slurm,
        runs.add_report,
        runs.add_verify,
        runs.add_doctor,
    ):
        add(verbs)
    return parser
