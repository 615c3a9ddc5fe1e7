// One sample of a batch. Causal: a token stream T of sequence_length + 1 tokens; tokens = T[:-1], labels = T[1:].
// Masked: a stream of sequence_length tokens; labels = T, and tokens are T with some places changed.
#include <algorithm>

#include "dnacore.h"

namespace dnacore {

namespace {

// Labels are encoded in place and tokens copied from them: T[i] is labels[i - 1] and tokens[i].
// Separators weigh 0, so that a loss divided by the weights is a loss of bases only.
void fill_causal(const Source &source, const Encoder &encoder, const Sample &sample, int64_t *tokens, int64_t *labels, float *weights) {
    const CutRules &rules = source.index->rules();
    const SpecialIds &special = encoder.special();
    const int64_t S = rules.sequence_length;
    int64_t first = special.bos, filled = 0;  // T[0], and places of `labels` written so far
    bool have_first = rules.add_bos;
    for (const Run &run : sample.runs) {
        const uint8_t *bases = source.bases + source.segment_start[run.segment] + run.start;
        int64_t count = run.length / rules.k;
        if (!have_first && count) {
            float unused;
            encoder.encode(bases + (run.reverse ? run.length - rules.k : 0), 1, run.reverse, &first, &unused);
            if (!run.reverse) bases += rules.k;
            --count;
            have_first = true;
        }
        encoder.encode(bases, count, run.reverse, labels + filled, weights + filled);
        filled += count;
        if (!run.separator_after) continue;
        if (have_first) {
            labels[filled] = special.eos;
            weights[filled++] = 0.0F;
        } else {
            first = special.eos;
            have_first = true;
        }
    }
    std::fill(labels + filled, labels + S, special.pad);
    std::fill(weights + filled, weights + S, 0.0F);
    tokens[0] = first;
    std::copy(labels, labels + S - 1, tokens + 1);
}

void fill_masked(const Source &source, const Encoder &encoder, const Masking &masking, const Sample &sample, int64_t *tokens,
                 int64_t *labels, float *weights) {
    const CutRules &rules = source.index->rules();
    const SpecialIds &special = encoder.special();
    int64_t filled = 0;
    const auto put_special = [&](int64_t id) {
        labels[filled] = id;
        weights[filled++] = 0.0F;
    };
    if (rules.add_bos) put_special(special.bos);
    for (const Run &run : sample.runs) {
        const int64_t count = run.length / rules.k;
        encoder.encode(source.bases + source.segment_start[run.segment] + run.start, count, run.reverse, labels + filled, weights + filled);
        filled += count;
        if (run.separator_after) put_special(special.eos);
    }
    const int64_t read = filled;
    while (filled < rules.sequence_length) put_special(special.pad);
    std::copy(labels, labels + filled, tokens);
    masking.apply(keyed_hash(rules.seed, Stream::mask, rules.source, static_cast<uint64_t>(sample.draw)), read, tokens, weights);
}

}  // namespace

void fill_sample(const Source &source, const Encoder &encoder, const Masking *masking, const Sample &sample, int64_t *tokens,
                 int64_t *labels, float *weights) {
    if (source.index->rules().masked) {
        fill_masked(source, encoder, *masking, sample, tokens, labels, weights);
    } else {
        fill_causal(source, encoder, sample, tokens, labels, weights);
    }
}

}  // namespace dnacore
