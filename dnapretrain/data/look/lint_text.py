"""The table that `dnapretrain lint` prints."""

from __future__ import annotations

from typing import Any

SHOWN_ERRORS = 10
SHOWN_GROUPS = 5
KINDS = {
    "empty": "empty",
    "very_short": "under 20 bases",
    "protein_like": "over 10 % ambiguous letters (protein?)",
    "over_half_n": "over half N",
    "one_base": "over 95 % one base",
}


def format_lint(report: dict[str, Any]) -> str:
    """A table of the files, what was noticed, what preprocess would do, and the verdict."""
    lines = _table(report)
    for file in report["files"]:
        lines += _file_lines(file)
    lines += _total_lines(report)
    lines += _duplicate_lines(report)
    lines += [f"note         {note}" for note in report["notes"]]
    lines += [f"error        {error['path'] + ': ' if error['path'] else ''}{error['message']}" for error in report["errors"]]
    lines += _preprocess_lines(report)
    return "\n".join(lines)


def _table(report: dict[str, Any]) -> list[str]:
    rows = [("file", "format", "packing", "records", "bases", "GC", "N", "lower", "N runs", "min", "median", "N50", "max", "errors")]
    total = report["total"]
    everything = [*report["files"], *([{**total, "path": f"{total['files']} files"}] if total["files"] != 1 else [])]
    for file in everything:
        lengths = file["lengths"] or dict.fromkeys(("min", "median", "n50", "max"), 0)
        count = file["errors"] if isinstance(file["errors"], int) else len(file["errors"])
        shares = (_percent(file[key]) for key in ("gc", "n_share", "lower_case_share"))
        numbers = (f"{lengths[key]:,}" for key in ("min", "median", "n50", "max"))
        more = "+" if file.get("stopped_early") and count > 1 else ""
        what = (file.get("format") or "-", file.get("compression") or "-", f"{file['records']:,}", f"{file['bases']:,}")
        rows.append((file["path"], *what, *shares, f"{file['n_runs']:,}", *numbers, f"{count:,}{more}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < 3 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _file_lines(file: dict[str, Any]) -> list[str]:
    lines = []
    if file["all_lower_case"]:
        lines.append(f"note         {file['path']}: over 99.9 % lower case, so lower case is no mask: preprocess writes it in upper case")
    if file["line_ends"] == "mixed":
        lines.append(f"note         {file['path']}: line ends are mixed, LF and CRLF: harmless here, but the file was edited or joined")
    for mistake in file["errors"][:SHOWN_ERRORS]:
        place = f"line {mistake['line']}, " if mistake["line"] else ""
        place += f"record '{mistake['record']}', " if mistake["record"] else ""
        lines.append(f"error        {file['path']}: {place[:-2] + ': ' if place else ''}{mistake['message']}")
    if (more := len(file["errors"]) - SHOWN_ERRORS) > 0:
        stopped = "; reading stopped there" if file["stopped_early"] else ""
        lines.append(f"error        {file['path']}: and {more:,} more (--json lists them){stopped}")
    return lines


def _total_lines(report: dict[str, Any]) -> list[str]:
    total = report["total"]
    composition = "  ".join(f"{base} {count:,}" for base, count in total["composition"].items())
    letters = ", ".join(f"{letter} {count:,}" for letter, count in total["other_letters"].items())
    lines = ["", f"composition  {composition}{f'  ({letters})' if letters else ''}"]
    if total["broken_records"]:
        lines.append(f"broken       {total['broken_records']:,} record(s) with errors, in no count here")
    for kind, noted in total["suspicious"].items():
        lines.append(f"suspicious   {KINDS[kind]}: {_noted(noted)}")
    for kind, noted in total["hints"].items():
        lines.append(f"named        {kind.replace('_', ' ')}: {_noted(noted)}")
    return lines


def _noted(noted: dict[str, Any]) -> str:
    more = ", ..." if noted["records"] > len(noted["examples"]) else ""
    return f"{noted['records']:,} record(s), {noted['bases']:,} bases: {', '.join(noted['examples'])}{more}"


def _duplicate_lines(report: dict[str, Any]) -> list[str]:
    found = report["duplicates"]
    lines = [f"same files   {', '.join(paths)}: same names and bases" for paths in report["same_content"]]
    if not found["groups"]:
        lines.append("duplicates   none: no two records have the same bases, on either strand")
    else:
        lines.append(
            f"duplicates   {found['records']:,} record(s), {found['bases']:,} bases repeat another record, "
            f"{found['of_them_reverse_complement']:,} of them as its reverse complement; {found['groups']:,} group(s):"
        )
    for group in found["longest"][:SHOWN_GROUPS]:
        shown = ", ".join(f"{member['record']} ({member['strand']})" for member in group["shown"])
        more = ", ..." if group["records"] > len(group["shown"]) else ""
        lines.append(f"             {group['bases']:,} bases: {shown}{more}")
    if found["compared_on_one_strand_only"]:
        lines.append(f"             {found['compared_on_one_strand_only']:,} record(s) are too long to be compared on both strands")
    return lines


def _preprocess_lines(report: dict[str, Any]) -> list[str]:
    plan, total = report["preprocess"], report["total"]
    lines = []
    if plan["counts"]:
        counts, tokens = plan["counts"], plan["tokens"]
        bases = ", ".join(f"{reason} {count:,}" for reason, count in counts["dropped_bases"].items())
        documents = ", ".join(f"{reason} {count:,}" for reason, count in counts["dropped_documents"].items())
        lines += [
            f"preprocess   keeps {counts['kept_bases']:,} of {counts['total_bases']:,} bases in {counts['documents']:,} documents; "
            f"leaves out, in bases: {bases}; in documents: {documents}; U made T {counts['u_converted']:,}",
            f"tokens       nucleotide {tokens['nucleotide']:,}  6-mer {tokens['kmer_6']:,}  BPE of 4,096 "
            f"about {tokens['bpe_4096_estimate']:,} (an estimate: 5 bases each)",
            f"disk         about {plan['disk_bytes_estimate']:,} bytes for the shard",
        ]
    if report["verdict"] == "clean":
        lines.append("verdict      clean: preprocess with these settings takes all of it")
        return lines
    skip = ", or leave such files out with --on-error skip" if plan["files_with_errors"] and plan["files"] and not report["errors"] else ""
    problems = (
        f"{total['errors'] + len(report['errors']):,} error(s), {plan['files_with_errors']:,} of {total['files']:,} file(s) cannot be used"
    )
    lines.append(f"verdict      {problems}: preprocess would stop. Mend them{skip}")
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
