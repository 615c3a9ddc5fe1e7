// Bases as bytes: complement and composition.
#include <cstring>
#include <stdexcept>

#include "dnacore.h"

namespace dnacore {

namespace {

constexpr std::array<uint8_t, 256> make_complement() {
    constexpr char codes[] = "ABCDGHKMNRSTUVWY";
    constexpr char complements[] = "TVGHCDMKNYSAABWR";
    std::array<uint8_t, 256> table{};
    for (size_t i = 0; codes[i] != '\0'; ++i) {
        table[static_cast<uint8_t>(codes[i])] = static_cast<uint8_t>(complements[i]);
        table[static_cast<uint8_t>(codes[i]) | 0x20] = static_cast<uint8_t>(complements[i]) | 0x20;
    }
    return table;
}

}  // namespace

const std::array<uint8_t, 256> kComplement = make_complement();

void reverse_complement(const uint8_t *bases, int64_t length, uint8_t *out) {
    uint8_t *last = out + length - 1;
    bool unknown = false;
    for (int64_t i = 0; i < length; ++i) {
        const uint8_t complement = kComplement[bases[i]];
        unknown |= complement == 0;
        *(last - i) = complement;
    }
    if (!unknown) return;
    for (int64_t i = 0; i < length; ++i)
        if (kComplement[bases[i]] == 0)
            throw std::invalid_argument("base " + std::to_string(i) + ": byte " + std::to_string(bases[i]) +
                                        " is not an IUPAC nucleotide code and has no complement");
}

namespace {

void count_plain(const uint8_t *bases, int64_t length, std::array<int64_t, 256> &counts) {
    // Four tables: with one, equal neighbours would wait for each other's store.
    std::array<std::array<int64_t, 256>, 4> tables{};
    for (int64_t i = 0; i < length; ++i) ++tables[i & 3][bases[i]];
    for (size_t value = 0; value < 256; ++value)
        for (const auto &table : tables) counts[value] += table[value];
}

#if defined(__x86_64__)
using Lanes = uint8_t __attribute__((vector_size(32)));
constexpr int64_t kTurns = 255;  // before a lane's count overflows
constexpr int64_t kCountBlock = kTurns * static_cast<int64_t>(sizeof(Lanes));

// Blocks that hold nothing but the ten usual letters are counted by comparison, the others by table; what is left of the last
// block is not counted. Returns the bytes that were.
__attribute__((target("avx2"))) int64_t count_avx2(const uint8_t *bases, int64_t length, std::array<int64_t, 256> &counts) {
    constexpr std::array<uint8_t, 10> kUsual{'A', 'C', 'G', 'T', 'N', 'a', 'c', 'g', 't', 'n'};
    int64_t at = 0;
    for (; at + kCountBlock <= length; at += kCountBlock) {
        std::array<Lanes, kUsual.size()> lanes{};
        for (int64_t turn = 0; turn < kTurns; ++turn) {
            Lanes here;
            std::memcpy(&here, bases + at + turn * static_cast<int64_t>(sizeof(Lanes)), sizeof(Lanes));
            for (size_t letter = 0; letter < kUsual.size(); ++letter) lanes[letter] -= reinterpret_cast<Lanes>(here == kUsual[letter]);
        }
        std::array<int64_t, kUsual.size()> found{};
        int64_t usual = 0;
        for (size_t letter = 0; letter < kUsual.size(); ++letter) {
            for (size_t lane = 0; lane < sizeof(Lanes); ++lane) found[letter] += lanes[letter][lane];
            usual += found[letter];
        }
        if (usual != kCountBlock) {
            count_plain(bases + at, kCountBlock, counts);
            continue;
        }
        for (size_t letter = 0; letter < kUsual.size(); ++letter) counts[kUsual[letter]] += found[letter];
    }
    return at;
}
#endif

}  // namespace

std::array<int64_t, 256> count_bytes(const uint8_t *bases, int64_t length) {
    std::array<int64_t, 256> counts{};
    int64_t counted = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) counted = count_avx2(bases, length, counts);
#endif
    count_plain(bases + counted, length - counted, counts);
    return counts;
}

}  // namespace dnacore
