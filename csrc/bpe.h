// Byte-pair encoding of DNA: the encoder (bpe.cpp) and the trainer (bpe_train.cpp).
#pragma once

#include <cstdint>
#include <queue>
#include <utility>
#include <vector>

#include "dnacore.h"

namespace dnacore {

// One merge: ids of the two parts and of what they become.
struct BpeMerge {
    int64_t left, right, product;
};

// Bases -> BPE tokens, exactly as merging by rank, leftmost first, gives them. Words are runs of A, C, G and T; every other
// byte is one <unk> and ends a word.
//
// A sequence of tokens is what BPE makes of a word if, and only if, every two neighbours are what BPE makes of their own text
// (Berglund and van der Merwe 2023). So the tokens are found from the left: the longest token that fits the last one, and where
// none leads on, one step back. A prefix of a word has one such sequence at most: a place found to lead nowhere is marked and never
// tried again, and the work is linear in the bases.
//
// The product of merges must be a text no earlier merge made, and parts must come before products, as in every list that BPE
// training gives; the constructor throws std::invalid_argument otherwise.
class BpeEncoder : public VariableEncoder {
public:
    static constexpr int64_t kMaxTokens = 32768;  // a bit for each pair of tokens: 128 MB
    // base_ids: ids of A, C, G, T. upper_case: lower case reads as upper case; otherwise it is <unk>.
    BpeEncoder(const std::vector<BpeMerge> &merges, const std::array<int64_t, 4> &base_ids, int64_t k, SpecialIds special,
               double lowercase_weight, bool upper_case);

    int64_t k() const override { return k_; }
    const SpecialIds &special() const override { return special_; }
    // With fewer than all tokens: the first ones of what all `length` bases encode to.
    Encoded encode(const uint8_t *bases, int64_t length, bool reverse, int64_t max_tokens, int64_t *ids, float *weights) const override;
    // All tokens: ids, and the bases that each stands for.
    void encode_all(const uint8_t *bases, int64_t length, bool reverse, std::vector<int64_t> &ids, std::vector<int32_t> &lengths) const;

private:
    struct Match {
        uint16_t token;  // the longest token that begins the bases looked at
        uint16_t node;   // where the trie goes on, 0 where it does not
    };
    struct Node {
        std::array<uint16_t, 4> child;
        int32_t token;  // -1: none ends here
    };
    struct Work;

    void add_tokens(const std::vector<BpeMerge> &merges, const std::array<int64_t, 4> &base_ids);
    void build_trie();
    void build_pairs();
    bool fits(unsigned left, unsigned right) const { return pairs_[left * row_ + (right >> 6)] >> (right & 63) & 1; }
    unsigned longest(const Work &work, int64_t at) const;
    void read_word(const uint8_t *bases, int64_t at, int64_t length, bool reverse, Work &work) const;
    void encode_word(Work &work) const;
    std::vector<uint16_t> tokens_of(const uint8_t *bases, int64_t length, bool reverse, int64_t max_tokens) const;

    int64_t k_;
    SpecialIds special_;
    double lowercase_weight_;
    std::array<uint8_t, 256> code_[2];  // byte -> 0 to 3, or 4 where it is no base; per strand

    // Tokens by number: A, C, G, T, then products in the order of merges; the last one stands for <unk>.
    std::vector<int64_t> id_;
    std::vector<int32_t> length_;
    std::vector<uint16_t> left_, right_;
    std::vector<std::vector<uint8_t>> text_;  // codes
    std::vector<bool> is_made_;               // false: its merge never happens, in any text
    std::vector<int32_t> shorter_;            // the longest other token that begins this one; -1 for bases
    std::vector<Match> matches_;              // of the next kLookUp bases
    std::vector<Node> nodes_;
    size_t row_ = 0;                // words in a row of pairs_
    std::vector<uint64_t> pairs_;  // bit (left, right): these tokens may stand side by side
};

// Learns merges from bases: the most frequent pair of neighbours becomes a token, among equals the one with the lowest numbers
// (A, C, G, T, then products in order), as the `tokenizers` library does. Overlapping pairs are all counted.
//
// The corpus is one array of 2 bytes per base that shrinks as pairs merge; each merge is one sequential pass over it. Besides there
// are 8 bytes for each pair of tokens.
class BpeTrainer {
public:
    static constexpr int64_t kMaxTokens = 16384;
    // max_length: bases of the longest token (0: no limit). capacity: bases and documents to make room for.
    BpeTrainer(int64_t num_merges, int64_t max_length, int64_t min_count, int64_t capacity);

    // Adds one document, as it is or its other strand. Case is ignored; every byte but A, C, G, T ends a word. Returns the bases taken.
    int64_t feed(const uint8_t *bases, int64_t length, bool reverse);
    // Learns up to `most` more merges; the numbers of their parts and how often the pair stood there. Fewer when no pair is left.
    std::vector<std::array<int64_t, 3>> learn(int64_t most);
    int64_t num_symbols() const { return static_cast<int64_t>(symbols_.size()) - num_holes_; }  // word ends included

private:
    struct Candidate {
        int64_t count;
        uint16_t left, right;
        bool operator<(const Candidate &other) const {
            if (count != other.count) return count < other.count;
            return left != other.left ? left > other.left : right > other.right;
        }
    };

    int64_t &count(unsigned left, unsigned right) { return counts_[left * static_cast<size_t>(num_tokens_) + right]; }
    void consider(unsigned left, unsigned right);
    void count_pairs();
    void merge(unsigned left, unsigned right, unsigned product);
    void merge_at(size_t at, size_t next, unsigned product);
    void squeeze();

    const int64_t num_tokens_, max_length_, min_count_;
    bool counted_ = false;
    std::vector<uint16_t> symbols_;  // tokens, kEnd between words, kHole where the right part of a merge was
    int64_t num_holes_ = 0;
    std::vector<int64_t> lengths_;  // of the tokens so far
    std::unique_ptr<int64_t[], void (*)(void *)> counts_;
    std::vector<int64_t> before_, after_;  // neighbours of the pair merged at present
    std::priority_queue<Candidate> queue_;  // counts may be too high: checked when they come up
};

}  // namespace dnacore
