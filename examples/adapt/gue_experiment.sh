#!/bin/sh
# Does pretraining help? Written down before the first run: tasks, models, seeds and settings do not change after it.
#
# Tasks (GUE; dev is the test table where GUE's own is not on disk): prom/prom_core_tata, mouse/2, mouse/3, tf/3.
# Contestants: each model, the same architecture from random weights, k-mer logistic regression, pooled one-hot tokens, convolutions.
# Seeds 1 to 5. Metric: MCC. Pretraining helps on a task if the 95 % interval of the mean over seeds lies above that of random weights.
# All four tasks are reported, whatever they say.
#
# sh examples/adapt/gue_experiment.sh GUE OUTPUT MODEL...    the same command goes on where it was stopped
set -eu
data=$1 output=$2
shift 2
exec dnapretrain benchmark "$@" --suite gue --data "$data" --output "$output" --tasks prom/prom_core_tata,mouse/2,mouse/3,tf/3 \
    --seeds 1,2,3,4,5 --from-scratch --set epochs=10 --set patience=3 --set lr=3e-4
