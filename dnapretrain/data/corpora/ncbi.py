"""NCBI's genomes server: from an accession to the address of its FASTA file and the published checksum."""

from __future__ import annotations

import html
import re
from urllib.parse import quote, unquote

from dnapretrain.data.corpora.corpus import Entry
from dnapretrain.data.corpora.download import Downloader, FetchError


def ncbi_address(entry: Entry, base: str, downloader: Downloader) -> tuple[str, str]:
    """Address of the genomic FASTA of an accession and the name of its folder, GCF_000005845.2_ASM584v2.

    The folder name holds the name of the assembly, with blanks and most signs as underscores. Where it is not given, or not
    in this spelling, the listing of the folder above tells it.
    """
    accession = entry.accession or ""
    digits = accession[4:13]
    above = f"{base}/{accession[:3]}/{digits[:3]}/{digits[3:6]}/{digits[6:9]}"
    if entry.assembly:
        directory = f"{accession}_{re.sub(r'[^A-Za-z0-9._-]', '_', entry.assembly)}"
        try:
            downloader.head(f"{above}/{quote(directory)}/{quote(directory)}_genomic.fna.gz")
        except FetchError as error:
            if error.status != 404:
                raise
        else:
            return f"{above}/{quote(directory)}/{quote(directory)}_genomic.fna.gz", directory
    try:
        listing = downloader.text(f"{above}/")
    except FetchError as error:
        if error.status != 404:
            raise
        raise FetchError(f"{accession}: not on the server (HTTP 404 for {above}/). Check the accession", 404) from None
    hrefs = [unquote(html.unescape(name)).rpartition("/")[2] for name in re.findall(r"""href=["']?([^"'>]+?)/?["'>]""", listing)]
    found = sorted({name for name in hrefs if name.startswith(f"{accession}_")})
    if len(found) != 1:
        others = ", ".join(sorted({name for name in hrefs if name.startswith(accession.partition(".")[0])})) or "none"
        raise FetchError(f"{accession}: {len(found)} folders of that name in {above}/ (there: {others}). Correct the accession")
    directory = found[0]
    return f"{above}/{quote(directory)}/{quote(directory)}_genomic.fna.gz", directory


def published_md5(url: str, downloader: Downloader) -> str | None:
    """MD5 of the file from the md5checksums.txt beside it; None where there is no such list."""
    folder, _, name = url.rpartition("/")
    try:
        text = downloader.text(f"{folder}/md5checksums.txt")
    except FetchError as error:
        if error.status != 404:
            raise
        return None
    match = re.search(rf"^([0-9a-f]{{32}})\s+\*?(?:\./)?{re.escape(unquote(name))}$", text, re.MULTILINE)
    return match[1] if match else None
