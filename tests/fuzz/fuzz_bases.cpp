// reverse_complement and count_bytes: against a table written out, and against themselves.
#include <map>
#include <stdexcept>

#include "dnacore.h"
#include "fuzz.h"

using namespace dnacore;

namespace {

// What pairs with what (IUPAC): a letter stands for a set of bases, its complement for the complements of them.
char across(char code) {
    static const std::map<char, std::string> sets{{'A', "A"},   {'C', "C"},   {'G', "G"},   {'T', "T"},   {'R', "AG"},  {'Y', "CT"},
                                                  {'S', "CG"},  {'W', "AT"},  {'K', "GT"},  {'M', "AC"},  {'B', "CGT"}, {'D', "AGT"},
                                                  {'H', "ACT"}, {'V', "ACG"}, {'N', "ACGT"}};
    const char letter = upper(code) == 'U' ? 'T' : upper(code);
    const auto found = sets.find(letter);
    if (found == sets.end()) return '\0';
    std::string wanted = strand(found->second, true);
    std::sort(wanted.begin(), wanted.end());
    for (const auto &[other, bases] : sets)
        if (bases == wanted) return static_cast<char>(is_lower(code) ? other + 32 : other);
    return '\0';
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const std::string table = [] {
        std::string letters;
        for (int byte = 0; byte < 256; ++byte) letters.push_back(across(static_cast<char>(byte)));
        return letters;
    }();
    static const std::string alphabets[] = {"", "ACGT", "ACGTNacgtn", "ABCDGHKMNRSTUVWYabcdghkmnrstuvwy"};
    Input input(data, size);
    const std::string bases = input.text(alphabets[input.byte() % std::size(alphabets)], 5000);
    const Exact exact(bases);
    const auto length = static_cast<int64_t>(bases.size());

    std::string expected;
    size_t bad = std::string::npos;
    for (size_t i = bases.size(); i-- > 0;) {
        expected.push_back(table[static_cast<uint8_t>(bases[i])]);
        if (expected.back() == '\0') bad = i;
    }
    const std::unique_ptr<uint8_t[]> out(new uint8_t[bases.size()]), back(new uint8_t[bases.size()]);
    try {
        reverse_complement(exact.data(), length, out.get());
        REQUIRE(bad == std::string::npos);
        REQUIRE(std::string(out.get(), out.get() + length) == expected);
        reverse_complement(out.get(), length, back.get());
        for (size_t i = 0; i < bases.size(); ++i) {
            const char base = bases[i];
            REQUIRE(back[i] == static_cast<uint8_t>(base == 'U' ? 'T' : base == 'u' ? 't' : base));
        }
    } catch (const std::invalid_argument &error) {
        REQUIRE(bad != std::string::npos);
        const std::string start = "base " + std::to_string(bad) + ": byte " + std::to_string(static_cast<uint8_t>(bases[bad])) + " ";
        REQUIRE(std::string(error.what()).compare(0, start.size(), start) == 0);
    }

    std::array<int64_t, 256> counts{};
    for (const char base : bases) ++counts[static_cast<uint8_t>(base)];
    REQUIRE(count_bytes(exact.data(), length) == counts);
    return 0;
}
