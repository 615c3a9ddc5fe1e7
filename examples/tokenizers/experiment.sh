#!/bin/sh
# Which tokens should a causal model of DNA read? GENERator's ablation (arXiv 2502.07272) on small models, written down before the first whole run.
#
# Contestants: single bases, k-mers of 2 to 8 bases, byte pairs of 512, 1,024, 4,096 and 8,192 tokens. The same layers (decoder.yaml: 2.8 million weights
# beside the vocabulary), the same windows of 840 bases in the same order, as many steps: all read the same bases. Steps of single bases so cost six times
# those of 6-mers; that is part of the answer, and training times are in the table. k-mers start at a random phase while training.
# Judged on held-out windows (blocks, 5 %): the model sees 812 to 816 bases (whole k-mers) and continues, the likeliest token each time. The share of prompts whose next K bases
# are all right, K = 1 to 16 (K = 6 is GENERator's next 6-mer), and bits per base. Every contestant is reported, whatever it says.
# 512 prompts are few: the standard error of a share of 5 % is 1 %. --recovery takes more.
#
# sh examples/tokenizers/experiment.sh SHARD OUTPUT [STEPS [CONTESTANT...]]    the same command goes on where it was stopped
#   SHARD: what `dnapretrain preprocess` wrote; STEPS: of 32 windows, default 2000; CONTESTANT: 1mer ... 8mer, bpe512 ...; DEVICE=cuda for a GPU
set -eu
shard=$1 output=$2 steps=${3:-2000}
[ $# -gt 3 ] && shift 3 || set -- 1mer 2mer 3mer 4mer 5mer 6mer 7mer 8mer bpe512 bpe1024 bpe4096 bpe8192
here=$(dirname "$0")
mkdir -p "$output"
for name in "$@"; do
    case $name in
    [1-8]mer) k=${name%mer}; settings="tokenizer.kind=kmer tokenizer.k=$k data.random_phase=true" ;;
    bpe*)
        k=4 merges=$output/$name.json   # bases that a token is taken to stand for at least: what does not fit is counted, and said
        if [ "${name#bpe}" -le 1024 ]; then k=3; fi
        [ -e "$merges" ] || dnapretrain train-bpe "$shard" --vocab-size "${name#bpe}" --output "$merges"
        settings="tokenizer.kind=bpe tokenizer.file=$merges tokenizer.k=$k" ;;
    *) echo "experiment.sh: $name is none of 1mer to 8mer, bpeN" >&2; exit 2 ;;
    esac
    [ -e "$output/$name.result.json" ] && continue
    dnapretrain pretrain "$here/decoder.yaml" "data.train=$shard" $settings "data.sequence_length=$((840 / k + 1))" \
        "train.train_steps=$steps" "optim.lr_warmup_steps=$((steps / 20))" "train.run_dir=$output/$name" "train.device=${DEVICE:-cpu}"
    dnapretrain evaluate "$output/$name" --max-samples 512 --recovery 512 --prompt-bases 816 --recovery-bases 16 --output "$output/$name.result.json"
done
exec python "$here/table.py" "$output"
