// Bases to token ids and loss weights by table look-up, on either strand. k-mers are numbered in
// Cartesian order of the base order, the rightmost base fastest; a k-mer with an ambiguous base is <unk>.
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

}  // namespace

Encoder::Encoder(int64_t k, const std::string &base_order, int64_t first_id, SpecialIds special, double lowercase_weight)
    : k_(k), first_id_(first_id), special_(special), weight_(256, 0.0F) {
    if (k < 1 || k > 8) throw std::invalid_argument("k must be 1 to 8 bases, got " + std::to_string(k));
    if (base_order.size() != 4 || base_order.find_first_not_of(kPairs) != std::string::npos)
        throw std::invalid_argument("the base order must hold A, C, G and T once each, got '" + base_order + "'");
    for (auto &table : token_) table.assign(256, special.unk);
    for (auto &table : code_) table.assign(256, kAmbiguous);
    for (size_t code = 0; code < 4; ++code) {
        for (const bool reverse : {false, true}) {
            const char upper = reverse ? complement(base_order[code]) : base_order[code];
            const auto up = static_cast<size_t>(upper), low = static_cast<size_t>(std::tolower(upper));
            token_[reverse][up] = token_[reverse][low] = first_id + static_cast<int64_t>(code);
            code_[reverse][up] = static_cast<uint8_t>(code);
            code_[reverse][low] = static_cast<uint8_t>(code | 1U << kLowerShift);
            weight_[up] = 1.0F;
            weight_[low] = static_cast<float>(lowercase_weight);
        }
    }
    for (auto &table : token_) table['N'] = table['n'] = special.n;
    for (int64_t lower = 0; lower <= k; ++lower)
        mean_.push_back(static_cast<float>((static_cast<double>(k - lower) + static_cast<double>(lower) * lowercase_weight) / static_cast<double>(k)));
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

}  // namespace dnacore
