// Bases as bytes: complement and composition.
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

std::array<int64_t, 256> count_bytes(const uint8_t *bases, int64_t length) {
    // Four tables: with one, equal neighbours would wait for each other's store.
    std::array<std::array<int64_t, 256>, 4> tables{};
    for (int64_t i = 0; i < length; ++i) ++tables[i & 3][bases[i]];
    for (size_t value = 0; value < 256; ++value)
        for (size_t table = 1; table < 4; ++table) tables[0][value] += tables[table][value];
    return tables[0];
}

}  // namespace dnacore
