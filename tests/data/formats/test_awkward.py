"""Every file of real data gives the right bases or the right error."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest

from dnapretrain import _core
from dnapretrain.data.formats.fasta import CutPolicy, FastaFile
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.errors import DataError

TOTAL = _core.RECORD_COUNTS.index("total")
NO_FASTA = "GFF3 without a ##FASTA part"
NOT_FASTA = "before the first '>': FASTA begins with a line such as '>chr1'"

# File -> format, records, bases, documents (N runs of 10 left out)
RIGHT = {
    "awkward/biopython_centaurea.nu": ("FASTA", 1, 1002, 1),
    "awkward/biopython_lavender.nu": ("FASTA", 1, 550, 1),
    "awkward/biopython_wisteria.nu": ("FASTA", 1, 2551, 1),
    "awkward/biopython_example.fastq": ("FASTQ", 3, 75, 3),
    "awkward/biopython_example.fastq.bgz": ("FASTQ", 3, 75, 3),
    "awkward/biopython_example_dos.fastq": ("FASTQ", 3, 75, 3),
    "awkward/biopython_longreads_original_sanger.fastq": ("FASTQ", 10, 3665, 10),
    "awkward/biopython_sequence.bigendian.2bit": ("2bit", 6, 1723, 11),
    "awkward/biopython_sequence.littleendian.2bit": ("2bit", 6, 1723, 11),
    "awkward/biopython_sequence.fa": ("FASTA", 6, 1723, 11),
    "awkward/lambda.bgzf.fa.gz": ("FASTA", 1, 48502, 1),
    "awkward/lambda_phix_multimember.fa.gz": ("FASTA", 2, 53888, 2),
    "awkward/mirbase_hairpin_RNA.fa.xz": ("FASTA", 28645, 2949871, 28653),
    "awkward/mirbase_hairpin_RNA.fa.zst": ("FASTA", 28645, 2949871, 28653),
    "awkward/nanopore_reads.fq.gz": ("FASTQ", 4000, 1798723, 4000),
    "awkward/vibrio_h1_1407_tiny_contigs.fa.gz": ("FASTA", 1407, 4041199, 1407),
    "awkward/volvox.2bit": ("2bit", 2, 56080, 2),
    "awkward/volvox.fa": ("FASTA", 2, 56080, 2),
    "awkward/volvox.gff3": ("GFF3", 1, 28, 1),
    "awkward/yeast_old_assembly_chrI.fa.gz": ("FASTA", 1, 230208, 1),
    "genomes/SARS-CoV-2_NC_045512.2.fa.gz": ("FASTA", 1, 29903, 1),
    "genomes/SARS-CoV-2_NC_045512.2.gbk.gz": ("GenBank", 1, 29903, 1),
    "genomes/celegans_WBcel235_1pct.fa.gz": ("FASTA", 7, 1002861, 7),
    "genomes/celegans_transcripts.fa.gz": ("FASTA", 2467, 2686758, 2467),
    "genomes/ecoli_K12_DH1_NC_017625.1.fa.gz": ("FASTA", 1, 4630707, 1),
    "genomes/ecoli_K12_MG1655.gbff.gz": ("GenBank", 1, 4641652, 1),
    "genomes/ecoli_K12_MG1655_NC_000913.3.fa.gz": ("FASTA", 1, 4641652, 1),
    "genomes/human_MT_NC_012920.1_rCRS.fa.gz": ("FASTA", 1, 16569, 1),
    "genomes/lambda_NC_001416.1.fa.gz": ("FASTA", 1, 48502, 1),
    "genomes/phiX174_NC_001422.1.fa.gz": ("FASTA", 1, 5386, 1),
    "genomes/phiX174_NC_001422.1.gbk.gz": ("GenBank", 1, 5386, 1),
    "genomes/plasmodium_falciparum_3D7_14chr_lowercase.fa.gz": ("FASTA", 14, 23264425, 23),
    "genomes/prochlorococcus_marinus_CCMP1375.fa.gz": ("FASTA", 1, 1751080, 1),
    "genomes/scerevisiae_R64_chrI-X_Mito.fa.gz": ("FASTA", 11, 6663991, 11),
    "genomes/vibrio_cholerae_N16961_AE003852_AE003853.fa.gz": ("FASTA", 2, 4033464, 2),
}
# File -> what the error says
WRONG = {
    "awkward/biopython_aster_no_wrap.pro": "line 2, record 'gi|3298468|dbj|BAA31520.1|': 'P' is an amino acid",
    "awkward/biopython_loveliesbleeding.pro": "line 2, record 'gi|2781234|pdb|1JLY|B': 'X' is not a nucleotide code",
    "awkward/ecoli_K12_MG1655_protein.faa.gz": "line 2, record 'NP_414542.1': 'I' is an amino acid",
    "awkward/biopython_dups.fasta": "line 10, record 'alpha': this name was used at line 1 already",
    "awkward/biopython_error_diff_ids.fastq": "line 11, record 'SLXA-B3_649_FC8437_R1_1_1_850_123': the '+' line names another record",
    "awkward/biopython_error_no_qual.fastq": "line 5, record 'SLXA-B3_649_FC8437_R1_1_1_610_79': 25 bases but at least 34 qualities",
    "awkward/biopython_error_trunc_in_seq.fastq": "line 19, record 'SLXA-B3_649_FC8437_R1_1_1_183_714': the file ends inside this record",
    "awkward/derived_phix_messy.fa": "line 13, record 'iupac': '-' is a gap",
    "awkward/volvox.filtered.vcf.gz": "line 1: this is VCF",
    "awkward/volvox.gtf": f"line 1: 'c' {NOT_FASTA}",
    "awkward/yeast_old_assembly_chrI+II.gff3.gz": NO_FASTA,
    "genomes/celegans_WBcel235_1pct.gff3.gz": f"line 1: 'I' {NOT_FASTA}",
    "genomes/ecoli_K12_MG1655.gff3.gz": NO_FASTA,
    "genomes/scerevisiae_R64_chrI-X_Mito.sgd.gff3.gz": NO_FASTA,
    "genomes/scerevisiae_sacCer3_ares_v15.chrI-X_M.gtf.gz": f"line 1: '#' {NOT_FASTA}",
}
# Pairs that hold the same sequence: with the same letters, but for case where one is a flat file
SAME = [
    ("awkward/biopython_sequence.fa", "awkward/biopython_sequence.littleendian.2bit"),
    ("awkward/biopython_sequence.fa", "awkward/biopython_sequence.bigendian.2bit"),
    ("awkward/volvox.fa", "awkward/volvox.2bit"),
    ("awkward/mirbase_hairpin_RNA.fa.xz", "awkward/mirbase_hairpin_RNA.fa.zst"),
    ("awkward/biopython_example.fastq", "awkward/biopython_example.fastq.bgz"),
    ("awkward/biopython_example.fastq", "awkward/biopython_example_dos.fastq"),
    ("genomes/lambda_NC_001416.1.fa.gz", "awkward/lambda.bgzf.fa.gz"),
    ("genomes/ecoli_K12_MG1655_NC_000913.3.fa.gz", "genomes/ecoli_K12_MG1655.gbff.gz"),
    ("genomes/phiX174_NC_001422.1.fa.gz", "genomes/phiX174_NC_001422.1.gbk.gz"),
    ("genomes/SARS-CoV-2_NC_045512.2.fa.gz", "genomes/SARS-CoV-2_NC_045512.2.gbk.gz"),
]


def data(name: str) -> Path:
    if "DNAPRETRAIN_TEST_DATA" not in os.environ:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    return Path(os.environ["DNAPRETRAIN_TEST_DATA"]) / name


@cache
def read(path: Path) -> tuple[tuple[str, int, int, int], bytes, tuple[tuple[int, int, int], ...], tuple[str, ...]]:
    file = FastaFile(path, CutPolicy())
    blocks = list(file.blocks())
    total = sum(int(block.counts[:, TOTAL].sum()) for block in blocks)
    documents = tuple(tuple(row) for block in blocks for row in block.documents.tolist())
    names = tuple(name for block in blocks for name, _ in block.headers)
    assert file.bytes_read == path.stat().st_size
    return (file.format, len(names), total, len(documents)), b"".join(block.bases.tobytes() for block in blocks), documents, names


@pytest.mark.parametrize("name", RIGHT)
def test_right_result(name):
    assert read(data(name))[0] == RIGHT[name]


@pytest.mark.parametrize("name", WRONG)
def test_right_error(name):
    path = data(name)
    with pytest.raises(DataError, match=re.escape(WRONG[name])) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: line ")


@pytest.mark.parametrize("pair", SAME, ids=[pair[1] for pair in SAME])
def test_two_files_of_one_sequence_agree(pair):
    (_, bases, documents, names), (kind, other_bases, other_documents, other_names) = (read(data(name)) for name in pair)
    assert (bases.upper() if kind[0] == "GenBank" else bases) == other_bases
    assert documents == other_documents
    if "lambda" not in pair[0]:  # the packed copy was renamed
        assert names == other_names


def test_the_table_names_every_file():
    found = {f"{folder}/{path.name}" for folder in ("awkward", "genomes") for path in data(folder).iterdir()}
    assert found == {*RIGHT, *WRONG}


def test_messy_fasta_without_its_gaps(tmp_path):
    text = data("awkward/derived_phix_messy.fa").read_bytes().replace(b"n-*", b"n")
    (tmp_path / "messy.fa").write_bytes(text)
    facts, bases, documents, names = read(tmp_path / "messy.fa")
    assert facts == ("FASTA", 5, 5420, 3)
    assert names == ("phiX_messy", "empty_record", "only_N", "iupac", "no_newline_at_end")
    assert documents == ((0, 0, 5386), (3, 0, 20), (4, 0, 4))
    assert bases[:5386].upper() == read(data("genomes/phiX174_NC_001422.1.fa.gz"))[1]
    assert bases[5386:] == b"ACGTRYSWKMBDHVNacgtnACGT"


def test_all_lower_case_assembly_is_written_in_upper_case(tmp_path, capsys):
    path = data("genomes/plasmodium_falciparum_3D7_14chr_lowercase.fa.gz")
    manifest = preprocess([path], tmp_path / "s")
    assert manifest["sources"][0]["all_lower_case"] is True
    assert manifest["counts"]["lower_case"] == 0
    assert (tmp_path / "s.bin").read_bytes() == read(path)[1].upper()
    assert f"{path}: over 99.9 % lower case" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["awkward/nanopore_reads.fq.gz", "awkward/biopython_longreads_original_sanger.fastq"])
def test_biopython_reads_the_same_reads(name):
    import gzip

    from Bio.SeqIO.QualityIO import FastqGeneralIterator

    path = data(name)
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        expected = [(title.split()[0], bases.encode()) for title, bases, _ in FastqGeneralIterator(file)]
    blocks = list(FastaFile(path, CutPolicy(min_n_run=10**9)).blocks())
    assert [read_name for block in blocks for read_name, _ in block.headers] == [read_name for read_name, _ in expected]
    assert b"".join(block.bases.tobytes() for block in blocks) == b"".join(text for _, text in expected)
