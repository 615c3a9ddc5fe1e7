"""Section data.regions: classes of bases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from dnapretrain.config.section import Section


class RegionFileConfig(Section):
    """Regions of contigs: a GFF3 or GTF file (plain or gzip), or a BED file."""

    path: Path
    assembly: str | None = None
    """The assembly whose contigs the file names; needed where several assemblies have contigs of one name."""
    contig_names: str | None = None
    """How names of the file are matched with contigs: by default they are equal (BED: or `assembly:contig`). chr: they may differ in 'chr'
    and in that of the mitochondrion; a file: lines of name<tab>contig."""
    skip_missing_contigs: bool = False
    """Leave out what lies on names that no contig has; else they are an error."""


class RegionsConfig(Section):
    """Classes of bases that held-out losses are told apart by. They change no loss, and what a run trains on even less."""

    files: dict[str, RegionFileConfig] = Field({})
    """Name: path, or {path, ...}. A base belongs to the first file that covers it. BED: one class, of this name. GFF3 and GTF: CDS, then
    UTR, then exon (of transcripts without a CDS), then intron; on contigs that such a file knows all else is intergenic."""
    soft_mask: bool = False
    """Tell soft-masked (lower-case) bases from others."""
    gc_edges: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Ascending shares of G and C that part the classes by GC of the surrounding `gc_window`, e.g. [0.35, 0.45, 0.55]; a base belongs to
    the class whose lower edge its window reaches."""
    gc_window: int = Field(1000, gt=0)
    """Bases; windows are laid end to end from the first base of each document on."""
    assembly: bool = False
    """Tell assemblies apart, so species."""

    @field_validator("files", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {str(name): {"path": item} if isinstance(item, (str, Path)) else item for name, item in value.items()}

    @field_validator("gc_edges")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"gc_edges = {list(value)} do not ascend: sort them, each once")
        return value

    @property
    def is_active(self) -> bool:
        """Whether anything is told apart."""
        return bool(self.files or self.soft_mask or self.gc_edges or self.assembly)
