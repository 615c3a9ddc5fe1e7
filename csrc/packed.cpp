// Bases at 2 bits each, and back. Whatever 2 bits cannot say (case, N, IUPAC codes) is a list of changes of state.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "dnacore.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define DNACORE_AVX2 1
#endif

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

// The letters of `bytes` packed bytes.
void unpack_plain(const uint8_t *packed, int64_t bytes, uint8_t *out) {
    for (int64_t i = 0; i < bytes; ++i) std::memcpy(out + kPerByte * i, kQuads[packed[i]].data(), kPerByte);
}

#ifdef DNACORE_AVX2
// 8 bytes to 32 letters: each byte in four places, of which each keeps its 2 bits, where a look-up of 16 finds them: the first and third
// place in bits 0 and 1 of a half byte (0 to 3), the others in bits 2 and 3 (0, 4, 8, 12).
__attribute__((target("avx2"))) void unpack_avx2(const uint8_t *packed, int64_t bytes, uint8_t *out) {
    constexpr int64_t kStep = 8;
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
    const __m256i own = _mm256_set1_epi16(0x0c03);
    const __m256i letters = _mm256_broadcastsi128_si256(
        _mm_setr_epi8('A', 'C', 'G', 'T', 'C', 0, 0, 0, 'G', 0, 0, 0, 'T', 0, 0, 0));
    int64_t i = 0;
    for (; i + kStep <= bytes; i += kStep) {
        int64_t word;
        std::memcpy(&word, packed + i, kStep);
        const __m256i whole = _mm256_shuffle_epi8(_mm256_set1_epi64x(word), spread);
        const __m256i half = _mm256_blend_epi16(whole, _mm256_srli_epi16(whole, 4), 0xaa);  // third and fourth place: the upper half
        const __m256i found = _mm256_shuffle_epi8(letters, _mm256_and_si256(half, own));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + kPerByte * i), found);
    }
    unpack_plain(packed + i, bytes - i, out + kPerByte * i);
}
#endif

using Unpack = void (*)(const uint8_t *, int64_t, uint8_t *);

Unpack fastest() {
#ifdef DNACORE_AVX2
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) return unpack_avx2;
#endif
    return unpack_plain;
}

const Unpack kUnpack = fastest();

// Upper-case letters of bases [start, stop).
void unpack(const uint8_t *packed, int64_t start, int64_t stop, uint8_t *out) {
    int64_t at = start;
    for (; at < stop && at % kPerByte; ++at) *out++ = kQuads[packed[at / kPerByte]][static_cast<size_t>(at % kPerByte)];
    const uint8_t *from = packed + at / kPerByte;
    const int64_t whole = (stop - at) / kPerByte;
    kUnpack(from, whole, out);
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

void unpack_bytes(const uint8_t *packed, int64_t bytes, uint8_t *out, bool plain) {
    (plain ? unpack_plain : kUnpack)(packed, bytes, out);
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
