#!/bin/sh
# Does pretraining help? Written down before the first run: tasks, models, seeds and settings do not change after it.
#
# Models: the two of gue_pretrain.sh, at their last step (decoder 2,500, encoder 1,000 steps of 32 samples). Tasks (GUE; dev is the test table where
# GUE's own is not on disk): prom/prom_core_tata, mouse/2, mouse/3, tf/3, each with at most 1,000 rows of a table, drawn at random: few labels, for two
# CPU cores.
# Contestants: each model, the same architecture from random weights, k-mer logistic regression, pooled one-hot tokens, convolutions.
# Seeds 1 to 5. Metric: MCC. Pretraining helps on a task if the 95 % interval of the mean over seeds lies above that of random weights.
# All four tasks are reported, whatever they say. The learning rate is the better of 3e-4 and 1e-3 for random weights (the decoder, by the loss of
# validation rows) on mouse/4, which takes no part (2,000 rows, seed 1): 0.69471 against 0.69481.
#
# sh examples/adapt/gue_experiment.sh GUE OUTPUT MODEL...    the same command goes on where it was stopped; JOBS=2 for two processes
set -eu
data=$1 output=$2
shift 2
exec dnapretrain benchmark "$@" --suite gue --data "$data" --output "$output" --tasks prom/prom_core_tata,mouse/2,mouse/3,tf/3 \
    --seeds 1,2,3,4,5 --from-scratch --max-rows 1000 --jobs "${JOBS:-1}" --set epochs=10 --set patience=3 --set lr=3e-4
