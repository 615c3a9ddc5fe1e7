// The masked objective: which places of a sample are predicted, and what the model reads there.
#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

#include "dnacore.h"

namespace dnacore {

namespace {

constexpr int64_t kBlock = 1024;  // places drawn before they are changed

uint64_t hash_of(uint64_t key, int64_t place) { return mix64(key + static_cast<uint64_t>(place + 1) * kGolden); }

double checked_share(const char *what, double value) {
    if (!(value >= 0 && value <= 1)) throw std::invalid_argument(std::string(what) + " must be 0 to 1, got " + std::to_string(value));
    return value;
}

}  // namespace

Masking::Masking(double mlm_probability, double mask_replace_prob, double random_replace_prob, int64_t mask_id, int64_t first_standard,
                 int64_t num_standard, int64_t span_length)
    : chosen_below_(static_cast<uint64_t>(checked_share("mlm_probability", mlm_probability) * 9007199254740992.0)),  // 2^53
      mask_below_(static_cast<uint64_t>(std::llround(checked_share("mask_replace_prob", mask_replace_prob) * 4294967296.0))),
      random_below_(static_cast<uint64_t>(
          std::llround((mask_replace_prob + checked_share("random_replace_prob", random_replace_prob)) * 4294967296.0))),
      mask_id_(mask_id),
      first_standard_(first_standard),
      num_standard_(static_cast<uint64_t>(num_standard)),
      span_length_(static_cast<uint64_t>(span_length)) {
    if (mask_replace_prob + random_replace_prob > 1)
        throw std::invalid_argument("mask_replace_prob and random_replace_prob must be at most 1 together, got " +
                                    std::to_string(mask_replace_prob + random_replace_prob));
    if (num_standard < 1 || num_standard >= int64_t{1} << 31)
        throw std::invalid_argument("the number of standard tokens must be 1 to 2^31 - 1, got " + std::to_string(num_standard));
    if (span_length < 1 || span_length >= int64_t{1} << 31)
        throw std::invalid_argument("the span length must be 1 to 2^31 - 1 tokens, got " + std::to_string(span_length));
}

// Chance cannot be foretold, so no loop branches on it: places are written to the list always, and kept by moving its end.
void Masking::apply(uint64_t key, int64_t count, int64_t *tokens, float *weights) const {
    if (span_length_ > 1) return apply_spans(key, count, tokens, weights);
    std::array<int64_t, kBlock> places;  // drawn in this block
    std::array<float, kBlock> kept;      // their weights: those of 0 are drawn as well, but nothing comes of it
    for (int64_t start = 0; start < count; start += kBlock) {
        const int64_t end = std::min(count, start + kBlock);
        size_t drawn = 0;
        for (int64_t i = start; i < end; ++i) {
            places[drawn] = i;
            drawn += hash_of(key, i) >> 11 < chosen_below_;
        }
        for (size_t n = 0; n < drawn; ++n) kept[n] = weights[places[n]];
        std::fill(weights + start, weights + end, 0.0F);
        for (size_t n = 0; n < drawn; ++n) {
            const int64_t i = places[n];
            const uint64_t hash = mix64(hash_of(key, i) + kGolden), high = hash >> 32, low = hash & 0xffffffff;
            const int64_t standard = first_standard_ + static_cast<int64_t>(low * num_standard_ >> 32);
            const int64_t replaced = high < mask_below_ ? mask_id_ : standard;
            const bool changed = (high < random_below_) & (kept[n] > 0);
            tokens[i] = changed ? replaced : tokens[i];
            weights[i] = kept[n];
        }
    }
}

// One decision per span: the hashes of its first place are those that the place would have by itself.
void Masking::apply_spans(uint64_t key, int64_t count, int64_t *tokens, float *weights) const {
    const auto length = static_cast<int64_t>(span_length_);
    auto next = static_cast<int64_t>(hash_of(key, -1) % span_length_);  // where the span after this one begins
    for (int64_t i = 0; i < count;) {
        while (next <= i) next += length;
        if (!(weights[i] > 0)) {  // left out, and the end of a span
            weights[i++] = 0.0F;
            continue;
        }
        int64_t end = i + 1;
        while (end < std::min(next, count) && weights[end] > 0) ++end;
        const uint64_t choice = hash_of(key, i);
        if (choice >> 11 >= chosen_below_) {
            std::fill(weights + i, weights + end, 0.0F);
        } else {
            const uint64_t kind = mix64(choice + kGolden) >> 32;
            if (kind < mask_below_) {
                std::fill(tokens + i, tokens + end, mask_id_);
            } else if (kind < random_below_) {
                for (int64_t place = i; place < end; ++place) {
                    const uint64_t low = mix64(hash_of(key, place) + kGolden) & 0xffffffff;
                    tokens[place] = first_standard_ + static_cast<int64_t>(low * num_standard_ >> 32);
                }
            }
        }
        i = end;
    }
}

}  // namespace dnacore
