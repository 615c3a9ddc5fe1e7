// Bases to token ids and loss weights by table look-up, on either strand. k-mers are numbered in
// Cartesian order of the base order, the rightmost base fastest. A k-mer with an ambiguous base is <unk>
// (Encoder), or is told by single letters (SplitEncoder).
#include <algorithm>
#include <array>
#include <cctype>
#include <stdexcept>

#include "dnacore.h"

namespace dnacore {

namespace {

constexpr uint8_t kAmbiguous = 4;    // bit 2 of a code
constexpr uint8_t kLowerShift = 4;   // bit 4: soft-masked
constexpr const char *kPairs = "ATCG";  // complements differ in bit 0 of their place

char complement(char base) { return kPairs[std::string(kPairs).find(base) ^ 1]; }

void check_k_and_order(int64_t k, const std::string &base_order) {
    if (k < 1 || k > 8) throw std::invalid_argument("k must be 1 to 8 bases, got " + std::to_string(k));
    if (base_order.size() != 4 || !std::is_permutation(base_order.begin(), base_order.end(), kPairs))
        throw std::invalid_argument("the base order must hold A, C, G and T once each, got '" + base_order + "'");
}

// Byte -> code of its base, or of the base across from it.
std::vector<uint8_t> code_table(const std::string &base_order, bool reverse) {
    std::vector<uint8_t> table(256, kAmbiguous);
    for (size_t code = 0; code < 4; ++code) {
        const char upper = reverse ? complement(base_order[code]) : base_order[code];
        table[static_cast<size_t>(upper)] = static_cast<uint8_t>(code);
        table[static_cast<size_t>(std::tolower(upper))] = static_cast<uint8_t>(code | 1U << kLowerShift);
    }
    return table;
}

// Number of lower-case bases among k -> loss weight of the token.
std::vector<float> mean_weights(int64_t k, double lowercase_weight) {
    std::vector<float> mean;
    for (int64_t lower = 0; lower <= k; ++lower)
        mean.push_back(static_cast<float>((static_cast<double>(k - lower) + static_cast<double>(lower) * lowercase_weight) / static_cast<double>(k)));
    return mean;
}

struct Tables {
    const uint8_t *code;
    const float *mean;
    int64_t first_id, unk;
};

template <int K, bool Reverse>
void encode_kmers(const Tables &tables, const uint8_t *bases, int64_t count, int64_t *ids, float *weights) {
    const uint8_t *at = Reverse ? bases + count * K - 1 : bases;
    for (int64_t i = 0; i < count; ++i) {
        unsigned id = 0, any = 0, lower = 0;
        for (int j = 0; j < K; ++j) {
            const unsigned code = tables.code[Reverse ? *(at - j) : *(at + j)];
            id = id << 2 | (code & 3);
            any |= code;
            lower += code >> kLowerShift;
        }
        at = Reverse ? at - K : at + K;
        const bool ambiguous = any & kAmbiguous;
        ids[i] = ambiguous ? tables.unk : tables.first_id + static_cast<int64_t>(id);
        weights[i] = ambiguous ? 0.0F : tables.mean[lower];
    }
}

using Kernel = void (*)(const Tables &, const uint8_t *, int64_t, int64_t *, float *);

template <bool Reverse>
constexpr std::array<Kernel, 9> kKernels{nullptr,
                                         nullptr,
                                         encode_kmers<2, Reverse>,
                                         encode_kmers<3, Reverse>,
                                         encode_kmers<4, Reverse>,
                                         encode_kmers<5, Reverse>,
                                         encode_kmers<6, Reverse>,
                                         encode_kmers<7, Reverse>,
                                         encode_kmers<8, Reverse>};

struct SplitTables {
    Tables words;
    const int64_t *single;
    const float *weight;
};

template <int K, bool Reverse>
Encoded encode_split(const SplitTables &tables, const uint8_t *bases, int64_t length, int64_t max_tokens, int64_t *ids, float *weights) {
    const uint8_t *first = Reverse ? bases + length - 1 : bases;
    const auto at = [first](int64_t i) { return Reverse ? *(first - i) : *(first + i); };
    const int64_t last_word = length - K;
    int64_t i = 0, count = 0;
    while (i < length && count < max_tokens) {
        unsigned id = 0, any = kAmbiguous, lower = 0;
        if (i <= last_word) {
            any = 0;
            for (int j = 0; j < K; ++j) {
                const unsigned code = tables.words.code[at(i + j)];
                id = id << 2 | (code & 3);
                any |= code;
                lower += code >> kLowerShift;
            }
        }
        if (!(any & kAmbiguous)) {
            ids[count] = tables.words.first_id + static_cast<int64_t>(id);
            weights[count++] = tables.words.mean[lower];
            i += K;
            continue;
        }
        const uint8_t base = at(i++);
        ids[count] = tables.single[base];
        weights[count++] = tables.weight[base];
        if (tables.single[base] == tables.words.unk)
            while (i < length && tables.single[at(i)] == tables.words.unk) ++i;
    }
    return {count, i};
}

using SplitKernel = Encoded (*)(const SplitTables &, const uint8_t *, int64_t, int64_t, int64_t *, float *);

template <bool Reverse>
constexpr std::array<SplitKernel, 9> kSplitKernels{nullptr,
                                                   encode_split<1, Reverse>,
                                                   encode_split<2, Reverse>,
                                                   encode_split<3, Reverse>,
                                                   encode_split<4, Reverse>,
                                                   encode_split<5, Reverse>,
                                                   encode_split<6, Reverse>,
                                                   encode_split<7, Reverse>,
                                                   encode_split<8, Reverse>};

}  // namespace

Encoder::Encoder(int64_t k, const std::string &base_order, int64_t first_id, SpecialIds special, double lowercase_weight)
    : k_(k), first_id_(first_id), special_(special), weight_(256, 0.0F) {
    check_k_and_order(k, base_order);
    for (const bool reverse : {false, true}) {
        code_[reverse] = code_table(base_order, reverse);
        token_[reverse].assign(256, special.unk);
        for (size_t byte = 0; byte < 256; ++byte)
            if (!(code_[reverse][byte] & kAmbiguous)) token_[reverse][byte] = first_id + (code_[reverse][byte] & 3);
        token_[reverse]['N'] = token_[reverse]['n'] = special.n;
    }
    for (const char base : base_order) {
        weight_[static_cast<size_t>(base)] = 1.0F;
        weight_[static_cast<size_t>(std::tolower(base))] = static_cast<float>(lowercase_weight);
    }
    mean_ = mean_weights(k, lowercase_weight);
}

void Encoder::encode(const uint8_t *bases, int64_t count, bool reverse, int64_t *ids, float *weights) const {
    if (k_ > 1) {
        const Tables tables{code_[reverse].data(), mean_.data(), first_id_, special_.unk};
        (reverse ? kKernels<true> : kKernels<false>)[static_cast<size_t>(k_)](tables, bases, count, ids, weights);
        return;
    }
    const int64_t *token = token_[reverse].data();
    const float *weight = weight_.data();
    const uint8_t *at = reverse ? bases + count - 1 : bases;
    const int64_t step = reverse ? -1 : 1;
    for (int64_t i = 0; i < count; ++i, at += step) {
        ids[i] = token[*at];
        weights[i] = weight[*at];
    }
}

SplitEncoder::SplitEncoder(int64_t k, const std::string &base_order, int64_t first_id, const std::string &singles, int64_t first_single,
                           SpecialIds special, double lowercase_weight)
    : k_(k), first_id_(first_id), special_(special), weight_(256, 0.0F) {
    check_k_and_order(k, base_order);
    mean_ = mean_weights(k, lowercase_weight);
    constexpr const char *kLetters = "ACGTUN", *kAcross = "TGCAAN";
    for (const bool reverse : {false, true}) {
        code_[reverse] = code_table(base_order, reverse);
        single_[reverse].assign(256, special.unk);
    }
    // Without these, a run of anything else would swallow the k-mers behind it.
    for (const char base : base_order)
        if (singles.find(base) == std::string::npos)
            throw std::invalid_argument("single tokens must hold A, C, G and T, got '" + singles + "'");
    for (const char letter : singles) {
        const size_t place = std::string(kLetters).find(letter);
        if (place == std::string::npos) throw std::invalid_argument("single tokens are letters of ACGTUN, got '" + singles + "'");
        const size_t across = singles.find(kAcross[place]);
        if (across == std::string::npos) throw std::invalid_argument("single tokens need the letter across from each, got '" + singles + "'");
        const auto upper = static_cast<size_t>(letter), lower = static_cast<size_t>(std::tolower(letter));
        single_[false][upper] = single_[false][lower] = first_single + static_cast<int64_t>(singles.find(letter));
        single_[true][upper] = single_[true][lower] = first_single + static_cast<int64_t>(across);
        weight_[upper] = letter == 'N' ? 0.0F : 1.0F;
        weight_[lower] = letter == 'N' ? 0.0F : static_cast<float>(lowercase_weight);
    }
}

Encoded SplitEncoder::encode(const uint8_t *bases, int64_t length, bool reverse, int64_t max_tokens, int64_t *ids, float *weights) const {
    const SplitTables tables{{code_[reverse].data(), mean_.data(), first_id_, special_.unk}, single_[reverse].data(), weight_.data()};
    const auto kernel = (reverse ? kSplitKernels<true> : kSplitKernels<false>)[static_cast<size_t>(k_)];
    return kernel(tables, bases, length, max_tokens, ids, weights);
}

}  // namespace dnacore
