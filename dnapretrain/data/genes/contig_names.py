"""Which contig of a shard a name in an annotation means: the same name, a mapping file, or the rule `chr`. Nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnapretrain.errors import ConfigError, DataError

RULE = "chr"
MITOCHONDRION = frozenset(("m", "mt", "mito", "mtdna", "mitochondrion", "mitochondrial"))
SHOWN = 6
FLAGS = ("--contig-names", "--skip-missing-contigs")
"""What the rule and leaving names out are called where the user sets them."""


@dataclass(frozen=True)
class Place:
    """Where the sequence that an annotation names lies in a shard."""

    contig: str
    offset: int | None = None
    """The contig is a window that begins at this position (0-based) of the annotated sequence; None: it is the whole sequence."""


def match_contigs(
    names: Iterable[str],
    contigs: Sequence[str],
    rule: str | None,
    skip_missing: bool,
    path: Path,
    options: tuple[str, str] = FLAGS,
    where: str = "the shard",
) -> dict[str, list[Place]]:
    """The places of each name; an empty list leaves its genes out.

    `where` is what messages call the home of `contigs`. `rule` is None (names are equal), `chr` (see `plain_name`; equal names come
    first) or a mapping file: `name<tab>contig` or `name<tab>contig<tab>offset`, where `-` as contig leaves the name out and an offset
    makes the contig a window (several lines may then have one name). Raises DataError for a name that has no contig, and for names
    between which the rule cannot tell.
    """
    names = list(dict.fromkeys(names))
    known = dict.fromkeys(contigs)
    found = {name: [Place(name)] for name in names if name in known}
    if rule == RULE:
        found = _by_rule(names, known, options[0])
    elif rule is not None:
        found |= _read_map(Path(rule), set(names), known, options[0], where)
    missing = [name for name in names if name not in found]
    if missing and (not skip_missing or not any(found.values())):
        raise DataError(
            f"{path}: '{missing[0]}' ({len(missing)} of {len(names)} names) is no contig of {where}. The file has {_some(names)}; "
            f"{where} has {_some(contigs)}. Give {options[0]} MAP.tsv (name<tab>contig), {options[0]} chr where names differ in "
            f"'chr' and that of the mitochondrion only, or {options[1]} to leave them out"
        )
    return {name: found.get(name, []) for name in names}


def plain_name(name: str) -> str:
    """`chr1`, `Chr1` and `1` are one name, and so are M, MT, Mt, Mito, MtDNA, chrM."""
    plain = name[3:] if name[:3].lower() == "chr" else name
    return "M" if plain.lower() in MITOCHONDRION else plain


def _by_rule(names: Iterable[str], contigs: dict[str, None], option: str) -> dict[str, list[Place]]:
    by_plain: dict[str, list[str]] = {}
    for contig in contigs:
        by_plain.setdefault(plain_name(contig), []).append(contig)
    found: dict[str, list[Place]] = {}
    taken: dict[str, str] = {}
    for name in names:
        candidates = [name] if name in contigs else by_plain.get(plain_name(name), [])
        if len(candidates) > 1:
            raise DataError(f"{option} chr: '{name}' may be any of {_some(candidates)}. Give a mapping file instead")
        for contig in candidates:
            if taken.setdefault(contig, name) != name:
                raise DataError(f"{option} chr: '{taken[contig]}' and '{name}' would both be '{contig}'. Give a mapping file instead")
            found[name] = [Place(contig)]
    return found


def _read_map(path: Path, names: set[str], contigs: dict[str, None], option: str, where: str) -> dict[str, list[Place]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {path} cannot be read: {error}. Give a file of name<tab>contig lines, or chr") from None
    found: dict[str, list[Place]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = line.rstrip().split("\t")
        if len(rest) not in (1, 2) or (len(rest) == 2 and not rest[1].isdecimal()):
            raise ConfigError(f"{path}: line {number} is not name<tab>contig or name<tab>contig<tab>offset. Mend it")
        if name not in names:
            continue  # maps of a whole assembly serve parts of it
        places = found.setdefault(name, [])
        if rest[0] == "-":
            continue
        if rest[0] not in contigs:
            raise ConfigError(f"{path}: line {number}: '{rest[0]}' is no contig of {where}, which has {_some(contigs)}. Mend it")
        if places and (len(rest) == 1 or places[-1].offset is None):
            raise ConfigError(f"{path}: line {number}: '{name}' has two contigs; only windows (with an offset) share a name. Mend it")
        places.append(Place(rest[0], int(rest[1]) if len(rest) == 2 else None))
    return found


def _some(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)})" if len(names) > SHOWN else "")
