// Orders that cost no memory: keyed hash, permutation of an index range, blend of sources.
#include <algorithm>
#include <stdexcept>

#include "dnacore.h"

namespace dnacore {

namespace {

constexpr int kRoundPairs = 3;

}  // namespace

uint64_t keyed_hash(uint64_t seed, Stream stream, uint64_t a, uint64_t b) {
    uint64_t hash = mix64(seed + kGolden);
    for (const uint64_t value : {static_cast<uint64_t>(stream), a, b}) hash = mix64((hash ^ value) + kGolden);
    return hash;
}

Permutation::Permutation(int64_t size, uint64_t key) : size_(static_cast<uint64_t>(size)), key_(key) {
    if (size < 1 || size >= (int64_t{1} << 62))
        throw std::invalid_argument("a permutation needs a size of 1 to 2^62 - 1, got " + std::to_string(size));
    const int bits = size_ == 1 ? 0 : 64 - __builtin_clzll(size_ - 1);
    low_bits_ = (bits + 1) / 2;
    low_mask_ = (uint64_t{1} << low_bits_) - 1;
    high_mask_ = (uint64_t{1} << (bits - low_bits_)) - 1;
}

int64_t Permutation::operator()(int64_t i) const {
    auto x = static_cast<uint64_t>(i);
    if (i < 0 || x >= size_) throw std::out_of_range("position " + std::to_string(i) + " is not in [0, " + std::to_string(size_) + ")");
    do {  // fewer than half of the power of two lies outside, so this runs twice on average at worst
        uint64_t low = x & low_mask_, high = x >> low_bits_, round_key = key_;
        for (int pair = 0; pair < kRoundPairs; ++pair) {
            low ^= mix64(high ^ (round_key += kGolden)) & low_mask_;
            high ^= mix64(low ^ (round_key += kGolden)) & high_mask_;
        }
        x = high << low_bits_ | low;
    } while (x >= size_);
    return static_cast<int64_t>(x);
}

Blend::Blend(std::vector<int64_t> sizes, bool blocks, uint64_t seed) : end_(std::move(sizes)), blocks_(blocks), seed_(seed) {
    if (end_.empty()) throw std::invalid_argument("there are no sources");
    int64_t total = 0;
    for (int64_t &size : end_) {
        if (size < (blocks ? 1 : 0)) throw std::invalid_argument("a source has " + std::to_string(size) + " samples");
        if (__builtin_add_overflow(total, size, &total)) throw std::invalid_argument("the sources hold more than 2^63 samples");
        size = total;
    }
}

Blend Blend::proportions(const std::vector<int64_t> &samples_per_block, uint64_t seed) {
    Blend blend(samples_per_block, true, seed);
    if (blend.end_.back() != kBlock)
        throw std::invalid_argument("the samples per block add up to " + std::to_string(blend.end_.back()) + ", not " + std::to_string(kBlock));
    return blend;
}

Blend Blend::concatenation(const std::vector<int64_t> &num_samples) { return Blend(num_samples, false, 0); }

std::pair<int64_t, int64_t> Blend::operator()(int64_t sample) const {
    if (sample < 0) throw std::out_of_range("sample id " + std::to_string(sample) + " is negative");
    if (!blocks_ && sample >= end_.back())
        throw std::out_of_range("sample id " + std::to_string(sample) + " is not below the " + std::to_string(end_.back()) + " samples");
    if (end_.size() == 1) return {0, sample};
    const int64_t block = blocks_ ? sample / kBlock : 0;
    int64_t rank = sample - block * kBlock;
    if (blocks_) rank = Permutation(kBlock, keyed_hash(seed_, Stream::blend, static_cast<uint64_t>(block), 0))(rank);
    const auto source = std::upper_bound(end_.begin(), end_.end(), rank) - end_.begin();
    const int64_t first = source ? end_[static_cast<size_t>(source - 1)] : 0;
    return {source, block * (end_[static_cast<size_t>(source)] - first) + rank - first};
}

}  // namespace dnacore
