#!/bin/sh
# Which sequences of the tasks of gue_experiment.sh (or of those named) lie in what its models were pretrained on: k-mers of 31 bases, on either strand.
# A sequence of 70 or 101 bases is a piece; at least half of its k-mers there: it counts as seen.
#
# sh examples/adapt/gue_overlap.sh GUE [TASK...]    of gue2_experiment.sh: the same bases; name its tasks
set -eu
data=$1 sets=
shift
[ $# -gt 0 ] || set -- prom/prom_core_tata mouse/2 mouse/3 tf/3
for task in "$@"; do
    for table in train dev; do
        name=$(echo "$task/$table" | tr / _)
        gzip -dcf "$data/$task/$table".csv* | awk -F, 'NR > 1 {print ">row" NR - 1 "\n" $1}' > "runs/gue/$name.fa"
        dnapretrain preprocess "runs/gue/$name.fa" --output "runs/gue/tasks/$name" --overwrite > /dev/null
        sets="$sets data.valid.$name=runs/gue/tasks/$name"
    done
done
exec dnapretrain leakage examples/adapt/gue_decoder.yaml $sets data.split.by=none data.split.valid_fraction=0 --scale 1 --piece 101
