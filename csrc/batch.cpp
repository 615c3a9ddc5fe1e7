// One sample of a batch: a token stream T of sequence_length + 1 tokens; tokens = T[:-1], labels = T[1:].
#include <algorithm>

#include "dnacore.h"

namespace dnacore {

// Labels are encoded in place and tokens copied from them: T[i] is labels[i - 1] and tokens[i].
// Separators weigh 0, so that a loss divided by the weights is a loss of bases only.
void fill_sample(const Source &source, const Encoder &encoder, const Sample &sample, int64_t *tokens, int64_t *labels, float *weights) {
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

}  // namespace dnacore
