"""The five published tokenizers on real sequence, id for id: ours (C++), ours as exported, and the published one.

    python benchmarks/prove_tokenizers.py GENOMES... --dnabert2 tokenizer.json [--bases 10_000_000] [--piece 10_000]

GENOMES are FASTA files, gzip or not; each gives at most a quarter of --bases, so that several are read. Pieces keep N and lower case. Two
comparisons for each piece: the text as it stands (`exact_case`), where lower case is unknown to the published tokenizers, and in
upper case, which is what the native encoder and the exported folder make of any case.

The published tokenizer is run by its own library where it is a class of it: `transformers.EsmTokenizer` (Nucleotide Transformer),
`tokenizers` with the published tokenizer.json (DNABERT-2). GENERator's and AIDO.DNA's are code of their repositories: theirs is
the plain Python version of the tests (tests/data/slow_published.py), written from its description. Exits 1 at a difference.
"""

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data"))

from slow_published import published
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer, EsmTokenizer

from dnapretrain.config import TokenizerConfig
from dnapretrain.data.tokens.files import save_hf_tokenizer
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer

KINDS = ("nt_v1", "nt_v2", "generator", "aido_dna", "bpe")


def pieces(files: list[Path], bases: int, piece: int) -> Iterator[str]:
    """Pieces of the records of the files, in their own letters."""
    left = bases
    for path in files:
        quota = min(left, bases // 4)
        for record in (gzip.open if path.suffix == ".gz" else open)(path, "rt").read().split(">")[1:]:
            text = "".join(record.split("\n")[1:])[:quota]
            quota -= len(text)
            left -= len(text)
            yield from (text[start : start + piece] for start in range(0, len(text), piece))


def published_tokenizer(kind: str, tokenizer: Tokenizer, file: Path, folder: Path) -> Callable[[str], list[int]]:
    """Ids without specials."""
    if kind == "bpe":
        library = Library.from_file(str(file))
        return lambda text: library.encode(text, add_special_tokens=False).ids
    if kind in ("nt_v1", "nt_v2"):
        (folder / "vocab.txt").write_text("\n".join(tokenizer.tokens))
        roles = {"pad_token": "<pad>", "mask_token": "<mask>", "cls_token": "<cls>", "unk_token": "<unk>", "eos_token": None}
        esm = EsmTokenizer(str(folder / "vocab.txt"), **roles)
        return lambda text: esm(text, add_special_tokens=False)["input_ids"]
    return lambda text: published(kind, text)


def compare(kind: str, texts: list[str], file: Path) -> dict[str, object]:
    """Ids compared and differences of each comparison, and seconds of the three."""
    settings = {"kind": kind, **({"file": file, "add_eos": True} if kind == "bpe" else {})}
    tokenizer = build_tokenizer(TokenizerConfig.model_validate(settings))
    seconds = {"published": 0.0, "ours": 0.0, "exported": 0.0}
    ids = differences = 0
    with tempfile.TemporaryDirectory() as folder:
        theirs = published_tokenizer(kind, tokenizer, file, Path(folder))
        save_hf_tokenizer(tokenizer, Path(folder) / "hf", max_length=10**9)
        exported = AutoTokenizer.from_pretrained(Path(folder) / "hf")
        for text in texts:
            upper = text.upper()
            start = time.process_time()
            expected = theirs(upper)
            then = time.process_time()
            ours = tokenizer.encode(text).tolist()
            after = time.process_time()
            folded = exported(text, add_special_tokens=False)["input_ids"]
            seconds["published"] += then - start
            seconds["ours"] += after - then
            seconds["exported"] += time.process_time() - after
            as_it_stands = expected if text == upper else theirs(text)
            found = (ours == expected, folded == expected, tokenizer.encode(text, exact_case=True).tolist() == as_it_stands)
            differences += found.count(False)
            ids += len(expected)
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    return {"tokenizer": kind, "pieces": len(texts), "ids": ids, "pieces_that_differ": differences, "cpu_seconds": rounded}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("genomes", nargs="+", type=Path)
    parser.add_argument("--dnabert2", type=Path, required=True, help="the published tokenizer.json")
    parser.add_argument("--bases", type=int, default=10_000_000)
    parser.add_argument("--piece", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    texts = list(pieces(arguments.genomes, arguments.bases, arguments.piece))
    joined = "".join(texts)
    letters = {"bases": len(joined), "lower": sum(map(joined.count, "acgtn")), "N": joined.count("N") + joined.count("n")}
    letters["other"] = len(joined) - sum(map(joined.upper().count, "ACGTN"))
    print(json.dumps(letters), flush=True)
    failed = False
    for kind in arguments.kinds:
        found = compare(kind, texts, arguments.dnabert2)
        failed |= bool(found["pieces_that_differ"])
        print(json.dumps(found), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
