// Orders that cost no memory: keyed hash, permutation of an index range.
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

int64_t Permutation::inverse(int64_t i) const {
    auto x = static_cast<uint64_t>(i);
    if (i < 0 || x >= size_) throw std::out_of_range("image " + std::to_string(i) + " is not in [0, " + std::to_string(size_) + ")");
    do {
        uint64_t low = x & low_mask_, high = x >> low_bits_, round_key = key_ + 2 * kRoundPairs * kGolden;
        for (int pair = 0; pair < kRoundPairs; ++pair) {
            high ^= mix64(low ^ round_key) & high_mask_;
            round_key -= kGolden;
            low ^= mix64(high ^ round_key) & low_mask_;
            round_key -= kGolden;
        }
        x = high << low_bits_ | low;
    } while (x >= size_);
    return static_cast<int64_t>(x);
}

}  // namespace dnacore
