#!/bin/sh
# Does pretraining help? The second experiment: single bases, a longer pretraining, frozen layers too. Written down before its first run on a
# task that is judged: tasks, model, seeds, settings and rules do not change after it.
#
# Model: gue2_decoder.yaml at its last step (3,000 steps of 32 x 128 bases). GUE's dev judges where its own test table is not on disk.
#
# A, frozen: logistic regression on the mean of the last layer's hidden states, the penalty by validation rows. Ten tasks, at most 2,000 rows of a
# table, drawn at random. Contestants: the model, the same architecture from random weights (seeds 1 to 5), k-mer counts and tokens, all through
# the same regression. Pretraining helps on a task if the model's 95 % interval (bootstrap over judged rows) lies above that of the mean over the
# seeds of random weights; it helps over the tasks if the 95 % interval, over the ten, of the differences lies above 0.
# B, fine-tuned: the four tasks, rows (at most 1,000 of a table) and settings of gue_experiment.sh, its learning rate too, seeds 1 to 3 (the clock
# does not allow five). Pretraining helps on a task if the 95 % interval of the mean over seeds lies above that of random weights; over the
# tasks as in A, over four. K-mer counts and convolutions of the first experiment are of the same rows.
# C, for the picture, no rule: A on prom/prom_core_tata and tf/3 with the checkpoints of 250, 500, 1,000, 2,000 and 3,000 steps.
# All is reported, whatever it says. mouse/4, which takes no part, chose the last layer instead of a middle one or all side by side (2,000 rows,
# the checkpoint of 750 steps: 0.19 against 0.09 and 0.20, random weights 0.13, 0.10, 0.12).
#
# sh examples/adapt/gue2_experiment.sh GUE OUTPUT MODEL    the same command goes on where it was stopped; JOBS=2 for two processes
set -eu
data=$1 output=$2 model=$3
run() { dnapretrain benchmark "$model" --suite gue --data "$data" --from-scratch --jobs "${JOBS:-1}" "$@"; }
frozen() { run --frozen=-1 --seeds 1,2,3,4,5 --max-rows 2000 --baselines kmer,tokens "$@"; }
frozen --output "$output/frozen" --tasks prom/prom_core_tata,prom/prom_core_notata,tf,mouse/0,mouse/2,mouse/3
mkdir -p "$output/checkpoints"
cp -R "$output/frozen/." "$output/checkpoints"   # random weights and baselines are the same: kept, not computed again
frozen --output "$output/checkpoints" --tasks prom/prom_core_tata,tf/3 --checkpoints 250,500,1000,2000,3000
run --output "$output/finetuned" --tasks prom/prom_core_tata,mouse/2,mouse/3,tf/3 --seeds 1,2,3 --max-rows 1000 --baselines none \
    --set epochs=10 --set patience=3 --set lr=3e-4
