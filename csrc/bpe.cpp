// BPE tokens of DNA, from the left with look-ups (bpe.h says why that is exact).
#include "bpe.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace dnacore {

namespace {

constexpr const char *kBases = "ACGT";  // complements add up to 3
constexpr uint8_t kOther = 4;
constexpr int kLookUp = 8;  // bases of one look-up
constexpr size_t kNumLookUps = size_t{1} << (2 * kLookUp);
constexpr int64_t kPadding = 16;  // bytes that look-ups may read behind a word

}  // namespace

// A word, 4 bases in a byte, and its tokens so far.
struct BpeEncoder::Work {
    explicit Work(int64_t length) : packed(static_cast<size_t>(length / 4 + kPadding)) {}

    std::vector<uint8_t> packed;
    int64_t length = 0;          // bases of the word
    std::vector<uint64_t> dead;  // bit i: no token sequence leads on from base i
    std::vector<uint16_t> tokens;

    unsigned at(int64_t base) const { return packed[static_cast<size_t>(base >> 2)] >> (2 * (base & 3)) & 3U; }
    uint64_t bases_from(int64_t base) const {  // at least 28, the first in the lowest bits
        uint64_t word;
        std::memcpy(&word, packed.data() + (base >> 2), sizeof word);
        return word >> (2 * (base & 3));
    }
    bool is_dead(int64_t base) const { return dead[static_cast<size_t>(base >> 6)] >> (base & 63) & 1; }
};

BpeEncoder::BpeEncoder(const std::vector<BpeMerge> &merges, const std::array<int64_t, 4> &base_ids, int64_t k, SpecialIds special,
                       double lowercase_weight, bool upper_case)
    : k_(k), special_(special), lowercase_weight_(lowercase_weight) {
    if (k < 1) throw std::invalid_argument("k must be at least 1 base, got " + std::to_string(k));
    for (const bool reverse : {false, true}) {
        code_[reverse].fill(kOther);
        for (uint8_t code = 0; code < 4; ++code) {
            const auto base = static_cast<unsigned char>(kBases[reverse ? 3 - code : code]);
            code_[reverse][base] = code;
            if (upper_case) code_[reverse][static_cast<size_t>(std::tolower(base))] = code;
        }
    }
    add_tokens(merges, base_ids);
    build_pairs();
    build_trie();
    id_.push_back(special.unk);
    length_.push_back(1);
}

void BpeEncoder::add_tokens(const std::vector<BpeMerge> &merges, const std::array<int64_t, 4> &base_ids) {
    if (static_cast<int64_t>(merges.size()) + 5 > kMaxTokens)
        throw std::invalid_argument(std::to_string(merges.size()) + " merges; at most " + std::to_string(kMaxTokens - 5) + " are supported");
    std::unordered_map<int64_t, uint16_t> number;
    const auto add = [&](int64_t id, std::vector<uint8_t> text) {
        if (!number.emplace(id, static_cast<uint16_t>(id_.size())).second)
            throw std::invalid_argument("token id " + std::to_string(id) + " is made twice; each token must come from one merge");
        id_.push_back(id);
        length_.push_back(static_cast<int32_t>(text.size()));
        text_.push_back(std::move(text));
    };
    for (uint8_t code = 0; code < 4; ++code) add(base_ids[code], {code});
    left_ = right_ = {0, 1, 2, 3};
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        uint16_t part[2];
        for (const bool right : {false, true}) {
            const int64_t id = right ? merges[rank].right : merges[rank].left;
            const auto found = number.find(id);
            if (found == number.end())
                throw std::invalid_argument("merge " + std::to_string(rank) + " (from 0) uses token id " + std::to_string(id) +
                                            ", which no earlier merge makes");
            part[right] = found->second;
        }
        std::vector<uint8_t> text = text_[part[0]];
        text.insert(text.end(), text_[part[1]].begin(), text_[part[1]].end());
        if (text.size() > (1U << 20)) throw std::invalid_argument("merge " + std::to_string(rank) + " makes a token of more than 2^20 bases");
        add(merges[rank].product, std::move(text));
        left_.push_back(part[0]);
        right_.push_back(part[1]);
    }
}

void BpeEncoder::build_trie() {
    nodes_.assign(1, {{0, 0, 0, 0}, -1});
    shorter_.assign(id_.size(), -1);
    for (size_t token = 0; token < id_.size(); ++token) {
        if (!is_made_[token]) continue;
        size_t node = 0;
        for (const uint8_t code : text_[token]) {
            if (!nodes_[node].child[code]) {
                if (nodes_.size() > UINT16_MAX) throw std::invalid_argument("the tokens have more than 65,535 different beginnings");
                nodes_[node].child[code] = static_cast<uint16_t>(nodes_.size());
                nodes_.push_back({{0, 0, 0, 0}, -1});
            }
            node = nodes_[node].child[code];
        }
        if (nodes_[node].token >= 0)
            throw std::invalid_argument("token ids " + std::to_string(id_[static_cast<size_t>(nodes_[node].token)]) + " and " +
                                        std::to_string(id_[token]) + " have the same text; each token must come from one merge");
        nodes_[node].token = static_cast<int32_t>(token);
    }
    for (size_t token = 0; token < id_.size(); ++token) {
        if (!is_made_[token]) continue;
        size_t node = 0;
        for (size_t i = 0; i + 1 < text_[token].size(); ++i) {
            node = nodes_[node].child[text_[token][i]];
            if (nodes_[node].token >= 0) shorter_[token] = nodes_[node].token;
        }
    }
    matches_.resize(kNumLookUps);
    for (size_t key = 0; key < kNumLookUps; ++key) {
        size_t node = 0;
        for (int i = 0; i < kLookUp; ++i) {
            node = nodes_[node].child[key >> (2 * i) & 3];
            if (!node) break;
            if (nodes_[node].token >= 0) matches_[key].token = static_cast<uint16_t>(nodes_[node].token);
        }
        const auto &child = nodes_[node].child;
        const bool leads_on = node && std::any_of(child.begin(), child.end(), [](uint16_t next) { return next != 0; });
        matches_[key].node = leads_on ? static_cast<uint16_t>(node) : 0;
    }
}

// Which tokens may stand side by side. Taking the two apart again, the one merged last first, no pair across the border may ever
// have been a merge that came before the one undone last: a lower rank, or the same rank further left.
//
// `after(l, r)`: that holds for what is left after the first step. It is that of the next pair of parts, whose row or bit is there.
void BpeEncoder::build_pairs() {
    const size_t count = id_.size(), none = count;
    row_ = (count + 63) / 64;
    pairs_.assign(count * row_, 0);
    std::vector<std::vector<std::pair<uint16_t, uint16_t>>> merges_of(count);  // left part -> right part, product
    for (size_t token = 4; token < count; ++token) merges_of[left_[token]].push_back({right_[token], static_cast<uint16_t>(token)});
    std::vector<size_t> product(count, none);  // of the present left token with each right one
    for (size_t left = 0; left < count; ++left) {
        uint64_t *row = pairs_.data() + left * row_;
        const auto set = [row](size_t bit, bool value) {
            row[bit >> 6] = (row[bit >> 6] & ~(uint64_t{1} << (bit & 63))) | uint64_t{value} << (bit & 63);
        };
        if (left >= 4) {  // right tokens before `left`: it is taken apart first
            const size_t part = right_[left];
            std::copy_n(pairs_.data() + part * row_, row_, row);
            for (const auto &[right, made] : merges_of[part])
                if (made < left) set(right, false);
        }
        for (const auto &[right, made] : merges_of[left]) product[right] = made;
        for (size_t right = left < 4 ? 0 : left; right < count; ++right) {
            const size_t part = left_[right];
            set(right, right < 4 || ((row[part >> 6] >> (part & 63) & 1) && product[part] > right));
        }
        for (const auto &merge : merges_of[left]) product[merge.first] = none;
    }
    // A merge whose parts never stand side by side makes nothing: an earlier one takes its text apart (CG before AC before AC + G).
    is_made_.assign(count, true);
    for (size_t token = 4; token < count; ++token)
        is_made_[token] = is_made_[left_[token]] && is_made_[right_[token]] && fits(left_[token], right_[token]);
    for (size_t left = 0; left < count; ++left)
        for (const auto &merge : merges_of[left]) pairs_[left * row_ + (merge.first >> 6)] &= ~(uint64_t{1} << (merge.first & 63));
}

// The longest token at a base; it may reach behind the end of the word.
inline unsigned BpeEncoder::longest(const Work &work, int64_t at) const {
    const Match match = matches_[work.bases_from(at) & (kNumLookUps - 1)];
    unsigned token = match.token;
    if (match.node) {
        at += kLookUp;
        for (unsigned node = match.node; at < work.length && (node = nodes_[node].child[work.at(at)]); ++at)
            if (nodes_[node].token >= 0) token = static_cast<unsigned>(nodes_[node].token);
    }
    return token;
}

// Packs the word that begins at `at`, on the strand read.
void BpeEncoder::read_word(const uint8_t *bases, int64_t at, int64_t length, bool reverse, Work &work) const {
    const uint8_t *code = code_[reverse].data();
    const uint8_t *first = reverse ? bases + length - 1 - at : bases + at;
    const int64_t step = reverse ? -1 : 1, most = length - at;
    uint8_t *out = work.packed.data();
    int64_t i = 0;
    for (; i + 4 <= most; i += 4, first += 4 * step) {
        const unsigned a = code[first[0]], b = code[first[step]], c = code[first[2 * step]], d = code[first[3 * step]];
        if ((a | b | c | d) & kOther) break;
        *out++ = static_cast<uint8_t>(a | b << 2 | c << 4 | d << 6);
    }
    unsigned rest = 0;
    for (int shift = 0; i < most && code[*first] != kOther; ++i, first += step, shift += 2) rest |= static_cast<unsigned>(code[*first]) << shift;
    *out++ = static_cast<uint8_t>(rest);
    std::fill_n(out, kPadding / 2, uint8_t{0});
    work.length = i;
}

// Appends the tokens of the packed word.
void BpeEncoder::encode_word(Work &work) const {
    const int64_t length = work.length;
    const size_t begin = work.tokens.size();
    work.dead.assign(static_cast<size_t>(length / 64 + 1), 0);
    int64_t at = 0, last_dead = -1;
    while (at < length) {
        auto token = static_cast<int>(longest(work, at));
        for (;;) {
            const bool is_first = work.tokens.size() == begin;
            for (; token >= 0; token = shorter_[static_cast<size_t>(token)]) {
                const int64_t end = at + length_[static_cast<size_t>(token)];
                if (end <= length && (end > last_dead || !work.is_dead(end)) &&
                    (is_first || fits(work.tokens.back(), static_cast<unsigned>(token))))
                    break;
            }
            if (token >= 0) break;
            work.dead[static_cast<size_t>(at >> 6)] |= uint64_t{1} << (at & 63);
            last_dead = std::max(last_dead, at);
            if (is_first) throw std::logic_error("no tokens spell a word of A, C, G and T");  // the merges are in order, so some always do
            token = work.tokens.back();
            work.tokens.pop_back();
            at -= length_[static_cast<size_t>(token)];
        }
        work.tokens.push_back(static_cast<uint16_t>(token));
        at += length_[static_cast<size_t>(token)];
    }
}

std::vector<uint16_t> BpeEncoder::tokens_of(const uint8_t *bases, int64_t length, bool reverse, int64_t max_tokens) const {
    Work work(length);
    for (int64_t at = 0; at < length && static_cast<int64_t>(work.tokens.size()) < max_tokens;) {
        if (code_[reverse][bases[reverse ? length - 1 - at : at]] == kOther) {
            work.tokens.push_back(static_cast<uint16_t>(id_.size() - 1));
            ++at;
            continue;
        }
        read_word(bases, at, length, reverse, work);
        encode_word(work);
        at += work.length;
    }
    return std::move(work.tokens);
}

Encoded BpeEncoder::encode(const uint8_t *bases, int64_t length, bool reverse, int64_t max_tokens, int64_t *ids, float *weights) const {
    const std::vector<uint16_t> tokens = tokens_of(bases, length, reverse, max_tokens);
    const int64_t count = std::min(static_cast<int64_t>(tokens.size()), max_tokens);
    const size_t unk = id_.size() - 1;
    const uint8_t *first = reverse ? bases + length - 1 : bases;
    int64_t at = 0;
    for (int64_t i = 0; i < count; ++i) {
        const size_t token = tokens[static_cast<size_t>(i)];
        const int64_t size = length_[token];
        int64_t lower = 0;
        for (int64_t j = at; j < at + size; ++j) lower += *(reverse ? first - j : first + j) >> 5 & 1;
        at += size;
        ids[i] = id_[token];
        const auto all = static_cast<double>(size), masked = static_cast<double>(lower);
        weights[i] = token == unk ? 0.0F : static_cast<float>((all - masked + masked * lowercase_weight_) / all);
    }
    return {count, at};
}

void BpeEncoder::encode_all(const uint8_t *bases, int64_t length, bool reverse, std::vector<int64_t> &ids,
                            std::vector<int32_t> &lengths) const {
    const std::vector<uint16_t> tokens = tokens_of(bases, length, reverse, INT64_MAX);
    ids.resize(tokens.size());
    lengths.resize(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
        ids[i] = id_[tokens[i]];
        lengths[i] = length_[tokens[i]];
    }
}

}  // namespace dnacore
