// Bases at 2 bits each, and back. Whatever 2 bits cannot say (case, N, IUPAC codes) is a list of changes of state.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "dnacore.h"

namespace dnacore {

namespace {

constexpr uint8_t kLetters[] = {'A', 'C', 'G', 'T'};
constexpr uint8_t kLower = 0x20;
constexpr int64_t kPerByte = 4;

// Byte -> the four letters it stands for, in memory order.
using Quads = std::array<std::array<uint8_t, kPerByte>, 256>;

constexpr Quads make_quads() {
    Quads quads{};
    for (size_t byte = 0; byte < quads.size(); ++byte)
        for (size_t i = 0; i < kPerByte; ++i) quads[byte][i] = kLetters[byte >> (2 * i) & 3];
    return quads;
}

constexpr Quads kQuads = make_quads();

// Letter -> code of the base | state << 8; kNoLetter for what is no letter.
constexpr uint16_t kNoLetter = 0xffff;

constexpr std::array<uint16_t, 256> make_entries() {
    std::array<uint16_t, 256> entries{};
    for (size_t byte = 0; byte < entries.size(); ++byte) {
        const size_t upper = byte & ~static_cast<size_t>(kLower);
        entries[byte] = upper >= 'A' && upper <= 'Z' ? static_cast<uint16_t>(byte << 8) : kNoLetter;
    }
    for (size_t code = 0; code < 4; ++code) {
        entries[kLetters[code]] = static_cast<uint16_t>(code);
        entries[kLetters[code] | kLower] = static_cast<uint16_t>(code | kLower << 8);
    }
    return entries;
}

constexpr std::array<uint16_t, 256> kEntries = make_entries();

// Upper-case letters of bases [start, stop).
void unpack(const uint8_t *packed, int64_t start, int64_t stop, uint8_t *out) {
    int64_t at = start;
    for (; at < stop && at % kPerByte; ++at) *out++ = kQuads[packed[at / kPerByte]][static_cast<size_t>(at % kPerByte)];
    const uint8_t *from = packed + at / kPerByte;
    const int64_t whole = (stop - at) / kPerByte;
    for (int64_t i = 0; i < whole; ++i) std::memcpy(out + kPerByte * i, kQuads[from[i]].data(), kPerByte);
    out += kPerByte * whole;
    const int64_t rest = stop - at - kPerByte * whole;
    for (int64_t i = 0; i < rest; ++i) out[i] = kQuads[from[whole]][static_cast<size_t>(i)];
}

// A soft-masked genome has a few hundred bases per run: the end is done with a word that overlaps the one before, not byte by byte.
void make_lower(uint8_t *letters, int64_t length) {
    constexpr int64_t kWord = 8;
    const auto lower_word = [](uint8_t *at) {
        uint64_t word;
        std::memcpy(&word, at, kWord);
        word |= 0x2020202020202020ULL;
        std::memcpy(at, &word, kWord);
    };
    if (length < kWord) {
        for (int64_t i = 0; i < length; ++i) letters[i] |= kLower;
        return;
    }
    for (int64_t i = 0; i < length - kWord; i += kWord) lower_word(letters + i);
    lower_word(letters + length - kWord);
}

}  // namespace

PackedBases::PackedBases(const uint8_t *packed, int64_t size, const int64_t *before, const uint16_t *offsets, const uint8_t *states)
    : packed_(packed), size_(size), before_(before), offsets_(offsets), states_(states) {}

// Offsets that are not in order, in a damaged file, give other letters, never a write outside of `out`.
void PackedBases::read(int64_t start, int64_t length, uint8_t *out) const {
    if (length <= 0) return;
    unpack(packed_, start, start + length, out);
    const int64_t end = start + length;
    int64_t block = start / kBlock;
    const uint16_t *first = offsets_ + before_[block], *last = offsets_ + before_[block + 1];
    int64_t change = std::upper_bound(first, last, static_cast<uint16_t>(start % kBlock)) - offsets_;
    const int64_t changes = before_[(size_ + kBlock - 1) / kBlock];
    for (int64_t at = start; at < end; ++change) {
        const uint8_t state = change ? states_[change - 1] : 0;
        int64_t stop = end;
        if (change < changes) {
            while (before_[block + 1] <= change) ++block;
            stop = std::min(std::max(block * kBlock + offsets_[change], at), end);
        }
        if (state == kLower)
            make_lower(out, stop - at);
        else if (state)
            std::memset(out, state, static_cast<size_t>(stop - at));
        out += stop - at;
        at = stop;
    }
}

void pack_bases(const uint8_t *bases, int64_t length, uint8_t &state, uint8_t *packed, Changes &changes) {
    for (int64_t block = 0; block < length; block += PackedBases::kBlock) {
        const size_t before = changes.offsets.size();
        const int64_t end = std::min(block + PackedBases::kBlock, length);
        for (int64_t at = block; at < end; at += kPerByte) {
            unsigned byte = 0, differs = 0;
            const int64_t upto = std::min(at + kPerByte, end);
            for (int64_t i = at; i < upto; ++i) {
                const unsigned entry = kEntries[bases[i]];
                byte |= (entry & 3) << (2 * (i - at));
                differs |= entry >> 8 ^ state;
            }
            if (differs) {
                byte = 0;
                for (int64_t i = at; i < upto; ++i) {
                    const uint16_t entry = kEntries[bases[i]];
                    if (entry == kNoLetter)
                        throw std::invalid_argument("byte " + std::to_string(bases[i]) + " at base " + std::to_string(i) + " is no letter");
                    byte |= (entry & 3U) << (2 * (i - at));
                    if (entry >> 8 == state) continue;
                    state = static_cast<uint8_t>(entry >> 8);
                    changes.offsets.push_back(static_cast<uint16_t>(i - block));
                    changes.states.push_back(state);
                }
            }
            *packed++ = static_cast<uint8_t>(byte);
        }
        changes.per_block.push_back(static_cast<int64_t>(changes.offsets.size() - before));
    }
}

}  // namespace dnacore
