#!/bin/sh
# The two models of gue_experiment.sh: a causal one over 6-mers (GENERator's family), a masked one over byte pairs (DNABERT-2's), of about a
# million weights each, pretrained on 10.5 million human bases: two pieces of chromosome 20 (GRCh37), one alternative scaffold, one contig of chromosome 1.
# The sequences of the tasks take no part, neither their training rows nor others, save those that lie in these pieces: gue_overlap.sh counts them.
#
# sh examples/adapt/gue_pretrain.sh "FASTA..."    the same command goes on where it was stopped; further key=value settings: "$PRETRAIN"
set -eu
fasta=$1
[ -e runs/gue/human.json ] || dnapretrain preprocess $fasta --output runs/gue/human
[ -e runs/gue/bpe.json ] || dnapretrain train-bpe runs/gue/human --vocab-size 1024 --output runs/gue/bpe.json
dnapretrain pretrain examples/adapt/gue_decoder.yaml ${PRETRAIN:-}
dnapretrain pretrain examples/adapt/gue_encoder.yaml ${PRETRAIN:-}
