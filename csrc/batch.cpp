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
    Scratch scratch;
    for (const Run &run : sample.runs) {
        const uint8_t *bases = source.read(run, scratch);
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

// Windows only: the one run of the sample makes the whole stream.
int64_t fill_causal(const Source &source, const VariableEncoder &encoder, const Sample &sample, int64_t *tokens, int64_t *labels,
                    float *weights) {
    const CutRules &rules = source.index->rules();
    const SpecialIds &special = encoder.special();
    const int64_t S = rules.sequence_length;
    const Run &run = sample.runs.front();
    Scratch scratch;
    const uint8_t *bases = source.read(run, scratch);
    Encoded read;
    if (rules.add_bos) {
        read = encoder.encode(bases, run.length, run.reverse, S, labels, weights);
        tokens[0] = special.bos;
    } else {  // T[0] is a token of the window as well
        std::vector<int64_t> ids(static_cast<size_t>(S + 1), special.pad);
        std::vector<float> of_ids(static_cast<size_t>(S + 1));
        read = encoder.encode(bases, run.length, run.reverse, S + 1, ids.data(), of_ids.data());
        tokens[0] = ids[0];
        std::copy(ids.begin() + 1, ids.end(), labels);
        std::copy(of_ids.begin() + 1, of_ids.end(), weights);
    }
    const int64_t filled = std::max<int64_t>(read.tokens - rules.context_tokens(), 0);
    std::fill(labels + filled, labels + S, special.pad);
    std::fill(weights + filled, weights + S, 0.0F);
    std::copy(labels, labels + S - 1, tokens + 1);
    return run.length - read.bases;
}

Encoded encode_run(const Encoder &encoder, const Run &run, const uint8_t *bases, int64_t, int64_t *ids, float *weights) {
    const int64_t count = run.length / encoder.k();
    encoder.encode(bases, count, run.reverse, ids, weights);
    return {count, run.length};
}

Encoded encode_run(const VariableEncoder &encoder, const Run &run, const uint8_t *bases, int64_t room, int64_t *ids, float *weights) {
    return encoder.encode(bases, run.length, run.reverse, room, ids, weights);
}

template <typename AnyEncoder>
int64_t fill_masked(const Source &source, const AnyEncoder &encoder, const Masking &masking, const Sample &sample, int64_t *tokens,
                    int64_t *labels, float *weights) {
    const CutRules &rules = source.index->rules();
    const SpecialIds &special = encoder.special();
    int64_t filled = 0, cut = 0;
    Scratch scratch;
    const auto put_special = [&](int64_t id) {
        labels[filled] = id;
        weights[filled++] = 0.0F;
    };
    if (rules.add_bos) put_special(special.bos);
    for (const Run &run : sample.runs) {
        const uint8_t *bases = source.read(run, scratch);
        const Encoded read = encode_run(encoder, run, bases, rules.label_tokens(), labels + filled, weights + filled);
        filled += read.tokens;
        cut += run.length - read.bases;
        if (run.separator_after) put_special(special.eos);
    }
    if (rules.add_eos) put_special(special.eos);
    const int64_t read = filled;
    while (filled < rules.sequence_length) put_special(special.pad);
    std::copy(labels, labels + filled, tokens);
    masking.apply(keyed_hash(rules.seed, Stream::mask, rules.source, static_cast<uint64_t>(sample.draw)), read, tokens, weights);
    return cut;
}

}  // namespace

void fill_documents(const CutRules &rules, const Sample &sample, int32_t *documents) {
    int64_t filled = 0;
    int32_t number = 0;
    const auto put = [&](int64_t count) {  // a causal stream has one token more than the sample reads
        const int64_t end = std::min(filled + count, rules.sequence_length);
        std::fill(documents + filled, documents + end, number);
        filled = end;
    };
    if (rules.add_bos) put(1);
    for (const Run &run : sample.runs) {
        put(run.length / rules.k);
        if (!run.separator_after) continue;
        if (filled) ++number;
        put(1);
    }
    if (rules.add_eos) put(1);
    std::fill(documents + filled, documents + rules.sequence_length, kNoDocument);
}

int64_t fill_sample(const Source &source, const Encoder &encoder, const Masking *masking, const Sample &sample, int64_t *tokens,
                    int64_t *labels, float *weights) {
    if (source.index->rules().masked) return fill_masked(source, encoder, *masking, sample, tokens, labels, weights);
    fill_causal(source, encoder, sample, tokens, labels, weights);
    return 0;
}

int64_t fill_sample(const Source &source, const VariableEncoder &encoder, const Masking *masking, const Sample &sample, int64_t *tokens,
                    int64_t *labels, float *weights) {
    if (source.index->rules().masked) return fill_masked(source, encoder, *masking, sample, tokens, labels, weights);
    return fill_causal(source, encoder, sample, tokens, labels, weights);
}

}  // namespace dnacore
