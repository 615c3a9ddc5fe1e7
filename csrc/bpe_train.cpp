// Learns BPE merges from bases in 2 bytes per base (bpe.h).
#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "bpe.h"

namespace dnacore {

namespace {

constexpr uint16_t kEnd = 0xFFFF, kHole = 0xFFFE;
constexpr size_t kBlock = 64;

// Whether the pair may stand somewhere in `kBlock` symbols. Without branches, so that compilers use vectors.
bool may_hold(const uint16_t *symbols, uint16_t left, uint16_t right) {
    uint16_t any = 0;
    for (size_t i = 0; i < kBlock; ++i) {
        const uint16_t next = symbols[i + 1];
        any |= static_cast<uint16_t>((symbols[i] == left) & ((next == right) | (next == kHole)));
    }
    return any;
}

std::array<uint16_t, 256> code_table(bool reverse) {
    const char *upper = reverse ? "TGCA" : "ACGT", *lower = reverse ? "tgca" : "acgt";
    std::array<uint16_t, 256> table;
    table.fill(kEnd);
    for (uint16_t code = 0; code < 4; ++code) table[static_cast<size_t>(upper[code])] = table[static_cast<size_t>(lower[code])] = code;
    return table;
}

}  // namespace

BpeTrainer::BpeTrainer(int64_t num_merges, int64_t max_length, int64_t min_count, int64_t capacity)
    : num_tokens_(num_merges + 4),
      max_length_(max_length),
      min_count_(std::max<int64_t>(min_count, 1)),
      lengths_(4, 1),
      counts_(nullptr, std::free) {
    if (num_merges < 1 || num_tokens_ > kMaxTokens)
        throw std::invalid_argument("merges must be 1 to " + std::to_string(kMaxTokens - 4) + ", got " + std::to_string(num_merges));
    if (max_length < 0 || max_length == 1)
        throw std::invalid_argument("the longest token must have 2 bases or more (0: no limit), got " + std::to_string(max_length));
    const auto tokens = static_cast<size_t>(num_tokens_);
    counts_.reset(static_cast<int64_t *>(std::calloc(tokens * tokens, sizeof(int64_t))));  // pages come when written
    if (!counts_) throw std::bad_alloc();
    symbols_.reserve(static_cast<size_t>(std::max<int64_t>(capacity, 0)) + 2 + kBlock);
    symbols_.push_back(kEnd);
}

int64_t BpeTrainer::feed(const uint8_t *bases, int64_t length, bool reverse) {
    static const std::array<uint16_t, 256> kCode = code_table(false), kAcross = code_table(true);
    const uint16_t *codes = (reverse ? kAcross : kCode).data();
    if (counted_) throw std::invalid_argument("documents must be fed before the first merge is learned");
    int64_t taken = 0;
    for (int64_t i = 0; i < length; ++i) {
        const uint16_t code = codes[bases[reverse ? length - 1 - i : i]];
        taken += code != kEnd;
        if (code != kEnd || symbols_.back() != kEnd) symbols_.push_back(code);
    }
    if (symbols_.back() != kEnd) symbols_.push_back(kEnd);
    return taken;
}

void BpeTrainer::consider(unsigned left, unsigned right) {
    const int64_t times = count(left, right);
    if (times < min_count_ || (max_length_ && lengths_[left] + lengths_[right] > max_length_)) return;
    queue_.push({times, static_cast<uint16_t>(left), static_cast<uint16_t>(right)});
}

void BpeTrainer::count_pairs() {
    for (size_t i = 1; i < symbols_.size(); ++i)
        if (symbols_[i - 1] != kEnd && symbols_[i] != kEnd) ++count(symbols_[i - 1], symbols_[i]);
    for (unsigned left = 0; left < 4; ++left)
        for (unsigned right = 0; right < 4; ++right) consider(left, right);
    before_.assign(static_cast<size_t>(num_tokens_), 0);
    after_ = before_;
    counted_ = true;
}

std::vector<std::array<int64_t, 3>> BpeTrainer::learn(int64_t most) {
    if (!counted_) count_pairs();
    std::vector<std::array<int64_t, 3>> learned;
    while (static_cast<int64_t>(learned.size()) < most && static_cast<int64_t>(lengths_.size()) < num_tokens_ && !queue_.empty()) {
        const Candidate top = queue_.top();
        queue_.pop();
        const int64_t times = count(top.left, top.right);
        if (times != top.count) {
            consider(top.left, top.right);
            continue;
        }
        learned.push_back({top.left, top.right, times});
        lengths_.push_back(lengths_[top.left] + lengths_[top.right]);
        merge(top.left, top.right, static_cast<unsigned>(lengths_.size() - 1));
        if (num_holes_ > static_cast<int64_t>(symbols_.size() / 8)) squeeze();
    }
    return learned;
}

// Merges from left to right. What neighbours lose and win is summed up first: the table of counts is large, the sums are not.
void BpeTrainer::merge(unsigned left, unsigned right, unsigned product) {
    const size_t size = symbols_.size();
    symbols_.resize(size + kBlock, kEnd);  // blocks may read behind the end; there is room
    const auto first = static_cast<uint16_t>(left), second = static_cast<uint16_t>(right);
    for (size_t block = 0; block < size; block += kBlock) {
        if (!may_hold(symbols_.data() + block, first, second)) continue;
        for (size_t i = block; i < block + kBlock; ++i) {
            if (symbols_[i] != first) continue;
            size_t next = i + 1;
            while (symbols_[next] == kHole) ++next;
            if (symbols_[next] == second) merge_at(i, next, product);
        }
    }
    symbols_.resize(size);
    for (unsigned token = 0; token <= product; ++token) {
        if (before_[token]) {
            count(token, left) -= before_[token];
            count(token, product) += before_[token];
        }
        if (after_[token]) {
            count(right, token) -= after_[token];
            count(product, token) += after_[token];
        }
        before_[token] = after_[token] = 0;
    }
    count(left, right) = 0;
    for (unsigned token = 0; token <= product; ++token) {
        consider(token, product);
        if (token != product) consider(product, token);
    }
}

void BpeTrainer::merge_at(size_t at, size_t next, unsigned product) {
    size_t before = at - 1, after = next + 1;  // the array begins and ends with kEnd
    while (symbols_[before] == kHole) --before;
    while (symbols_[after] == kHole) ++after;
    if (symbols_[before] != kEnd) ++before_[symbols_[before]];
    if (symbols_[after] != kEnd) ++after_[symbols_[after]];
    symbols_[at] = static_cast<uint16_t>(product);
    symbols_[next] = kHole;
    ++num_holes_;
}

void BpeTrainer::squeeze() {
    symbols_.erase(std::remove(symbols_.begin(), symbols_.end(), kHole), symbols_.end());
    num_holes_ = 0;
}

}  // namespace dnacore
