"""GFF3 and GTF to gene models: each dialect by rows as its source writes them, and the errors of damaged files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dnapretrain.data.genes.annotation import AnnotationFile
from dnapretrain.data.genes.gene_models import Annotation, Gene, read_genes, type_of
from dnapretrain.errors import DataError


def annotation(tmp_path: Path, rows: str, header: str = "##gff-version 3\n") -> Annotation:
    """`rows` with blanks for tabs between the first eight columns."""
    lines = ["\t".join(line.split(None, 8)) for line in rows.strip().splitlines()]
    (tmp_path / "a.gff").write_text(header + "\n".join(lines) + "\n")
    return read_genes(tmp_path / "a.gff")


def only(found: Annotation) -> Gene:
    [gene] = found.genes
    return gene


def test_refseq_gene_with_coding_sequence_below_it(tmp_path):
    rows = """
    NC_1 RefSeq region 1 500 . + . ID=NC_1:1..500;Is_circular=true;gbkey=Src
    NC_1 RefSeq gene 10 21 . + . ID=gene-b1;gene_biotype=protein_coding;gbkey=Gene
    NC_1 RefSeq CDS 10 21 . + 0 ID=cds-1;Parent=gene-b1;transl_table=11;exception=a%2C b
    NC_1 RefSeq sequence_feature 10 20 . + . ID=id-1
    """
    found = annotation(tmp_path, rows)
    gene = only(found)
    assert (gene.id, gene.type, gene.regions, gene.strand) == ("gene-b1", "cds", [(9, 21)], "+")
    [transcript] = gene.transcripts
    [cds] = transcript.coding
    assert (transcript.id, transcript.exons, cds.pieces, cds.table, cds.exception) == ("gene-b1", [(9, 21)], [(9, 21)], 11, "a, b")
    assert (found.file.lengths, found.file.circular, found.file.other_types) == ({"NC_1": 500}, {"NC_1"}, {"sequence_feature": 1})
    assert found.counts == {"rows": 2, "missing_parents": 0, "genes": 1, "transcripts": 1, "coding_sequences": 1}


def test_minus_strand_runs_from_the_last_piece_down_and_children_may_come_first(tmp_path):
    rows = """
    1 ensembl CDS 5 10 . - 2 ID=CDS:P;Parent=transcript:T
    1 ensembl CDS 20 30 . - 0 ID=CDS:P;Parent=transcript:T
    1 ensembl exon 1 10 . - . Parent=transcript:T
    1 ensembl exon 20 40 . - . Parent=transcript:T
    1 ensembl mRNA 1 40 . - . ID=transcript:T;Parent=gene:G;biotype=protein_coding
    1 ensembl gene 1 40 . - . ID=gene:G;biotype=protein_coding
    """
    [transcript] = only(annotation(tmp_path, rows)).transcripts
    assert transcript.exons == [(19, 40), (0, 10)]
    assert (transcript.coding[0].pieces, transcript.coding[0].phases) == ([(19, 30), (4, 10)], [0, 2])


def test_one_coding_sequence_of_several_transcripts_is_theirs_all(tmp_path):
    rows = """
    I WormBase gene 1 30 . + . ID=Gene:W;biotype=protein_coding
    I WormBase mRNA 1 30 . + . ID=Transcript:a;Parent=Gene:W
    I WormBase mRNA 1 25 . + . ID=Transcript:b;Parent=Gene:W
    I WormBase CDS 4 9 . + 0 ID=CDS:x;Parent=Transcript:a,Transcript:b
    """
    first, second = only(annotation(tmp_path, rows)).transcripts
    assert first.coding[0].pieces == second.coding[0].pieces == [(3, 9)]


@pytest.mark.parametrize(
    ("identities", "expected"),
    [
        (("", ""), [[(0, 6), (10, 16)]]),  # SGD
        (("ID=c;", "ID=c;"), [[(0, 6), (10, 16)]]),  # GENCODE
        (("ID=c.1;", "ID=c.2;"), [[(0, 6), (10, 16)]]),  # Phytozome
    ],
)
def test_rows_of_one_coding_sequence(tmp_path, identities, expected):
    rows = f"""
    1 x mRNA 1 20 . + . ID=t
    1 x CDS 1 6 . + 0 {identities[0]}Parent=t
    1 x CDS 11 16 . + 0 {identities[1]}Parent=t
    """
    assert [cds.pieces for cds in only(annotation(tmp_path, rows)).transcripts[0].coding] == expected


def test_overlapping_rows_with_their_own_names_are_coding_sequences_of_their_own(tmp_path):
    rows = """
    1 x gene 1 20 . + . ID=g
    1 x CDS 1 6 . + 0 ID=a;Parent=g
    1 x CDS 1 12 . + 0 ID=b;Parent=g
    """
    assert [cds.pieces for cds in only(annotation(tmp_path, rows)).transcripts[0].coding] == [[(0, 6)], [(0, 12)]]


def test_trans_splicing_goes_by_part_and_mixed_strands_are_marked(tmp_path):
    rows = """
    c x gene 50 60 . + . ID=g;part=1
    c x gene 1 10 . + . ID=g;part=2
    c x CDS 50 60 . + 0 ID=p;Parent=g;part=1
    c x CDS 1 10 . + 2 ID=p;Parent=g;part=2
    c x gene 1 10 . - . ID=h
    c x CDS 1 10 . - 0 ID=q;Parent=h
    c x CDS 30 39 . + 0 ID=q;Parent=h
    """
    gene, mixed = annotation(tmp_path, rows).genes
    assert gene.regions == [(49, 60), (0, 10)]
    assert gene.transcripts[0].coding[0].pieces == [(49, 60), (0, 10)]
    assert mixed.transcripts[0].mixed and not mixed.transcripts[0].coding


def test_rows_without_or_with_missing_parent(tmp_path):
    rows = """
    1 x CDS 1 6 . + 0 Name=Apple1
    1 x mRNA 11 20 . + . ID=t2;Name=Apple2
    1 x CDS 12 17 . + 0 Parent=t2
    1 x exon 31 40 . + . Parent=lost
    1 x exon 51 60 . + . Parent=lost
    1 x tRNA 71 80 . - . ID=t3;Parent=lost-gene
    """
    found = annotation(tmp_path, rows)
    assert [(gene.id, gene.type, gene.regions) for gene in found.genes] == [
        ("Apple1", "cds", [(0, 6)]),
        ("t2", "cds", [(10, 20)]),
        ("lost", "other", [(30, 60)]),
        ("t3", "tRNA", [(70, 80)]),
    ]
    assert found.counts["missing_parents"] == 2  # "lost" and "lost-gene"


def test_exons_from_coding_sequence_and_untranslated_rows(tmp_path):
    rows = """
    1 x mRNA 1 40 . + . ID=t
    1 x five_prime_UTR 1 5 . + . Parent=t
    1 x CDS 6 10 . + 0 Parent=t
    1 x CDS 20 30 . + 1 Parent=t
    1 x three_prime_UTR 31 40 . + . Parent=t
    """
    assert only(annotation(tmp_path, rows)).transcripts[0].exons == [(0, 10), (19, 40)]


def test_ends_that_are_not_complete(tmp_path):
    rows = """
    1 x mRNA 1 20 . + . ID=a
    1 x CDS 1 9 . + 0 Parent=a;partial=true;start_range=.,1
    1 x mRNA 21 40 . - . ID=b
    1 x CDS 21 29 . - 0 Parent=b;partial=true;start_range=.,21
    1 x mRNA 41 60 . + . ID=c;tag=cds_end_NF,mRNA_end_NF
    1 x CDS 41 49 . + 0 Parent=c
    1 x mRNA 61 70 . + . ID=d;partial=true
    1 x CDS 61 70 . + 0 Parent=d
    1 x mRNA 71 80 . + . ID=e
    1 x CDS 71 80 . + 1 Parent=e
    1 x mRNA 81 90 . + . ID=f
    1 x CDS 81 90 . + 0 Parent=f
    """
    coding = [gene.transcripts[0].coding[0] for gene in annotation(tmp_path, rows).genes]
    assert [(cds.partial5, cds.partial3) for cds in coding] == [
        (True, False),
        (False, True),
        (False, True),
        (True, True),
        (True, False),
        (False, False),
    ]


GTF = """
1 u gene 1 40 . + . gene_id "g"; gene_biotype "protein_coding"; note "a; b";
1 u exon 1 12 . + . gene_id "g"; transcript_id "t"; exon_number 1;
1 u CDS 4 12 . + 0 gene_id "g"; transcript_id "t"; tag "basic"; tag "CCDS";
1 u start_codon 4 6 . + . gene_id "g"; transcript_id "t";
1 u exon 21 40 . + . gene_id "g"; transcript_id "t";
1 u CDS 21 26 . + 0 gene_id "g"; transcript_id "t";
1 u stop_codon 27 29 . + . gene_id "g"; transcript_id "t";
"""


@pytest.mark.parametrize("header", ["", "##gff-version 2.5\n", "#!genome-build x\n", "track name='x y'\n"])
def test_gtf_joins_the_stop_codon_that_lies_outside(tmp_path, header):
    found = annotation(tmp_path, GTF, header)
    [transcript] = only(found).transcripts
    [cds] = transcript.coding
    assert (found.file.format, transcript.exons, cds.pieces) == ("gtf", [(0, 12), (20, 40)], [(3, 12), (20, 29)])
    assert (cds.partial5, cds.partial3) == (False, False)


def test_gtf_stop_codon_beyond_an_intron_and_one_that_is_inside_already(tmp_path):
    apart = GTF.replace("CDS 21 26", "CDS 31 31").replace("stop_codon 27 29", "stop_codon 36 38")
    assert only(annotation(tmp_path, apart, "")).transcripts[0].coding[0].pieces[-2:] == [(30, 31), (35, 38)]
    inside = GTF.replace("CDS 21 26", "CDS 21 29")
    assert only(annotation(tmp_path, inside, "")).transcripts[0].coding[0].pieces == [(3, 12), (20, 29)]


def test_gtf_without_codon_rows_where_others_have_them_is_not_complete(tmp_path):
    rows = GTF + '1 u CDS 51 60 . - 0 gene_id "h"; transcript_id "t2";\n'
    cds = annotation(tmp_path, rows, "").genes[1].transcripts[0].coding[0]
    assert (cds.partial5, cds.partial3) == (True, True)


def test_gtf_gene_without_row_is_a_region_for_each_cluster_of_transcripts(tmp_path):
    rows = "".join(
        f'{contig} u exon {start} {start + 9} . {strand} . gene_id "g"; transcript_id "t{name}"; gene_type "lincRNA";\n'
        for contig, start, strand, name in [("1", 1, "+", 1), ("1", 6, "+", 2), ("1", 16, "+", 3), ("1", 90, "-", 1), ("2", 5, "+", 1)]
    )
    found = annotation(tmp_path, rows, "")
    assert [(gene.contig, gene.strand, gene.regions, len(gene.transcripts)) for gene in found.genes] == [
        ("1", "+", [(0, 15)], 2),
        ("1", "+", [(15, 25)], 1),
        ("1", "-", [(89, 99)], 1),
        ("2", "+", [(4, 14)], 1),
    ]
    assert {gene.type for gene in found.genes} == {"ncRNA"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *((word, "cds") for word in ("protein_coding", "IG_V_gene", "V_gene_segment", "C_region", "mRNA", "TR_C_gene")),
        *((word, "pseudo") for word in ("pseudogene", "transcribed_unprocessed_pseudogene", "IG_V_pseudogene", "pseudogenic_tRNA")),
        *((word, "tRNA") for word in ("tRNA", "Mt_tRNA", "tRNA_gene")),
        *((word, "rRNA") for word in ("rRNA", "Mt_rRNA", "rRNA_gene")),
        *(
            (word, "ncRNA")
            for word in ("lncRNA", "lnc_RNA", "miRNA", "snoRNA_gene", "SRP_RNA", "antisense", "circular_ncRNA", "ncRNA_gene")
        ),
        *((word, "miscRNA") for word in ("misc_RNA", "tmRNA")),
        *((word, None) for word in ("gene", "transcript", "TEC", "transposable_element_gene")),
    ],
)
def test_types(word, expected):
    assert type_of(word) == expected


def test_type_comes_from_the_gene_then_from_its_coding_sequence_then_from_its_transcripts(tmp_path):
    rows = """
    1 x tRNA_gene 1 9 . + . ID=a
    1 x gene 11 19 . + . ID=b
    1 x CDS 11 19 . + 0 Parent=b
    1 x gene 21 29 . + . ID=c
    1 x snoRNA 21 29 . + . ID=c1;Parent=c
    1 x gene 31 39 . + . ID=d;gene_biotype=misc_RNA;pseudo=true
    1 x gene 41 49 . + . ID=e
    1 x transposable_element_gene 51 59 . + . ID=f
    """
    assert [gene.type for gene in annotation(tmp_path, rows).genes] == ["tRNA", "cds", "ncRNA", "pseudo", "other", "other"]


def test_gzip_fasta_at_the_end_and_crlf(tmp_path):
    text = "##gff-version 3\r\n1\tx\tgene\t1\t9\t.\t+\t.\tID=a%3Bb\r\n##FASTA\r\n>1\r\nACGTACGTA\r\n"
    (tmp_path / "a.gff3.gz").write_bytes(gzip.compress(text.encode()))
    assert [gene.id for gene in read_genes(tmp_path / "a.gff3.gz").genes] == ["a;b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\tx\tgene\t1\t9\t.\t+\n", "line 1 has 7 columns"),
        ("\n1\tx\tgene\t9\t1\t.\t+\t.\tID=a\n", "line 2 runs from '9' to '1'"),
        ("1\tx\tgene\t0\t9\t.\t+\t.\tID=a\n", "line 1 runs from '0'"),
        ("1\tx\tgene\t-4\t9\t.\t+\t.\tID=a\n", "runs from '-4'"),
        ("1\tx\tgene\t1\t9\t.\tplus\t.\tID=a\n", "strand 'plus'"),
        ("1\tx\tCDS\t1\t9\t.\t+\t3\tID=a\n", "phase '3'"),
        ("1\tx\tgene\t1\t9\t.\t+\t.\tsomething else here\n", "neither 'key=value'"),
        ("1\tx\tgene\t1\t9\t.\t+\t.\tID\n", "neither 'key=value'"),
        ("##gff-version 3\n1\tx\tgene\t1\t9\t.\t+\t.\tID=a;b\n", "attribute 'b'"),
        ('1\tx\texon\t1\t9\t.\t+\t.\tgene_id "a"; oops\n', "attributes are not"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (gzip.compress(b"1\tx\tgene\t1\t9\t.\t+\t.\tID=a\n" * 99, mtime=0)[:-9], "cut or damaged"),
    ],
)
def test_damaged_files_name_the_line(tmp_path, text, message):
    (tmp_path / "a.gff").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=message) as error:
        read_genes(tmp_path / "a.gff")
    assert str(error.value).startswith(str(tmp_path / "a.gff"))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(AnnotationFile(tmp_path / "no.gff").rows())
