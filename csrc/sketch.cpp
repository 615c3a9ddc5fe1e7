// Sketches: canonical k-mers by rolling 2-bit codes, kept by their hash; and the table of what was kept.
#include "sketch.h"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>

#include "dnacore.h"

namespace dnacore {

namespace {

constexpr uint8_t kNoBase = 4;
constexpr size_t kFirstSlots = size_t{1} << 16;

constexpr std::array<uint8_t, 256> make_codes() {
    std::array<uint8_t, 256> codes{};
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = kNoBase;
    const char *letters = "ACGT";
    for (uint8_t code = 0; code < 4; ++code) {
        codes[static_cast<uint8_t>(letters[code])] = code;
        codes[static_cast<uint8_t>(letters[code] | 0x20)] = code;
    }
    return codes;
}

constexpr std::array<uint8_t, 256> kCode = make_codes();

}  // namespace

Sketcher::Sketcher(int64_t k, int64_t scale) : k_(k) {
    if (k < kMinSketchK || k > kMaxSketchK)
        throw std::invalid_argument("k = " + std::to_string(k) + " is not from " + std::to_string(kMinSketchK) + " to " +
                                    std::to_string(kMaxSketchK));
    if (scale < 1) throw std::invalid_argument("scale = " + std::to_string(scale) + " is below 1");
    largest_ = std::numeric_limits<uint64_t>::max() / static_cast<uint64_t>(scale);
}

void Sketcher::add(const uint8_t *bases, int64_t start, int64_t end, int64_t limit, std::vector<uint64_t> &out) const {
    const uint64_t mask = (uint64_t{1} << (2 * k_)) - 1;
    const int top = static_cast<int>(2 * (k_ - 1));
    const int64_t stop = std::min(end + k_ - 1, limit);
    const auto first = static_cast<std::ptrdiff_t>(out.size());
    uint64_t forward = 0, backward = 0;
    int64_t run = 0;  // bases since the last letter that is none
    for (int64_t i = start; i < stop; ++i) {
        const uint64_t code = kCode[bases[i]];
        if (code == kNoBase) {
            run = 0;
            continue;
        }
        forward = (forward << 2 | code) & mask;
        backward = backward >> 2 | (3 - code) << top;
        if (++run < k_) continue;
        // The finalizer alone leaves 0, poly-A, where it is: it would be kept at any scale.
        const uint64_t hash = mix64(std::min(forward, backward) + kGolden);
        if (hash <= largest_) out.push_back(hash);
    }
    std::sort(out.begin() + first, out.end());
    out.erase(std::unique(out.begin() + first, out.end()), out.end());
}

KeptSketches::KeptSketches(double near, int64_t min_hashes)
    : near_(near), min_hashes_(min_hashes), hash_(kFirstSlots), holder_(kFirstSlots, -1) {
    if (!(near > 0 && near <= 1)) throw std::invalid_argument("near = " + std::to_string(near) + " is not above 0 and at most 1");
    if (min_hashes < 1) throw std::invalid_argument("min_hashes = " + std::to_string(min_hashes) + " is below 1");
}

// Where a hash is, or the empty slot where it belongs. Kept hashes are small numbers: their low bits choose the slot.
size_t KeptSketches::slot_of(uint64_t hash) const {
    const size_t mask = hash_.size() - 1;
    size_t slot = static_cast<size_t>(hash) & mask;
    while (holder_[slot] >= 0 && hash_[slot] != hash) slot = (slot + 1) & mask;
    return slot;
}

void KeptSketches::grow() {
    std::vector<uint64_t> hashes(2 * hash_.size());
    std::vector<int32_t> holders(2 * hash_.size(), -1);
    hashes.swap(hash_);
    holders.swap(holder_);
    for (size_t i = 0; i < hashes.size(); ++i) {
        if (holders[i] < 0) continue;
        const size_t slot = slot_of(hashes[i]);
        hash_[slot] = hashes[i];
        holder_[slot] = holders[i];
    }
}

Offer KeptSketches::offer(const uint64_t *hashes, int64_t count) {
    if (num_pieces_ == std::numeric_limits<int32_t>::max()) throw std::invalid_argument("more than 2^31 - 1 pieces: use longer ones");
    const auto piece = static_cast<int32_t>(num_pieces_++);
    found_.clear();
    for (int64_t i = 0; i < count; ++i) {
        const int32_t holder = holder_[slot_of(hashes[i])];
        if (holder >= 0) found_.push_back(holder);
    }
    const auto shared = static_cast<int64_t>(found_.size());
    if (count < min_hashes_ || static_cast<double>(shared) < near_ * static_cast<double>(count)) {
        while (10 * (num_hashes_ + count) > 7 * static_cast<int64_t>(hash_.size())) grow();
        for (int64_t i = 0; i < count; ++i) {
            const size_t slot = slot_of(hashes[i]);
            if (holder_[slot] >= 0) continue;
            hash_[slot] = hashes[i];
            holder_[slot] = piece;
            ++num_hashes_;
        }
        return {shared, -1};
    }
    std::sort(found_.begin(), found_.end());
    int64_t most = 0;
    int32_t holder = -1;
    for (size_t from = 0, to; from < found_.size(); from = to) {
        for (to = from; to < found_.size() && found_[to] == found_[from]; ++to) {
        }
        if (static_cast<int64_t>(to - from) > most) {
            most = static_cast<int64_t>(to - from);
            holder = found_[from];
        }
    }
    return {shared, holder};
}

}  // namespace dnacore
