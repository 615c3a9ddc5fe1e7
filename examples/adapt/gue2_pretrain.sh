#!/bin/sh
# The model of gue2_experiment.sh: a causal one over single bases of 0.85 million weights, on the same 10.5 million human bases as those of
# gue_pretrain.sh, which says what these are.
#
# sh examples/adapt/gue2_pretrain.sh "FASTA..."    the same command goes on where it was stopped
set -eu
fasta=$1
[ -e runs/gue/human.json ] || dnapretrain preprocess $fasta --output runs/gue/human
dnapretrain pretrain examples/adapt/gue2_decoder.yaml ${PRETRAIN:-}
