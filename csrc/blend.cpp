// Blend of sources: exact counts in each block of samples, in stages, in both directions.
//
// A stage deals its sources' draws out by its own proportions. Where the next one begins, inside a block as a rule, it goes on
// with what the block has left over, in order, and then with the draws behind: each draw of a source is read once, whatever
// the stages, and the order of a stage depends on nothing that comes after it.
#include <algorithm>
#include <stdexcept>

#include "dnacore.h"

namespace dnacore {

namespace {

constexpr int64_t kMaxSamples = int64_t{1} << 62;

std::vector<int64_t> cumulative(std::vector<int64_t> sizes) {
    if (sizes.empty()) throw std::invalid_argument("there are no sources");
    int64_t total = 0;
    for (int64_t &size : sizes) {
        if (size < 0) throw std::invalid_argument("a source has " + std::to_string(size) + " samples");
        if (__builtin_add_overflow(total, size, &total)) throw std::invalid_argument("the sources hold more than 2^63 samples");
        size = total;
    }
    return sizes;
}

}  // namespace

Blend Blend::proportions(const std::vector<int64_t> &samples_per_block, uint64_t seed) {
    Blend blend;
    blend.blocks_ = true;
    blend.seed_ = seed;
    blend.add_stage(0, samples_per_block);
    return blend;
}

Blend Blend::concatenation(const std::vector<int64_t> &num_samples) {
    Blend blend;
    blend.stages_.push_back({0, 0, cumulative(num_samples), {}});
    return blend;
}

void Blend::add_stage(int64_t start, const std::vector<int64_t> &samples_per_block) {
    if (!blocks_) throw std::invalid_argument("sources that follow each other have no stages");
    Stage stage{start, 0, cumulative(samples_per_block), std::vector<Progress>(samples_per_block.size())};
    stage.block = stage.end.back();
    if (stage.block < kBlock || stage.block > kMaxBlock || (stage.block & (stage.block - 1)))
        throw std::invalid_argument("the samples per block add up to " + std::to_string(stage.block) + ", not to a power of two of " +
                                    std::to_string(kBlock) + " to " + std::to_string(kMaxBlock));
    if (!stages_.empty()) {
        if (start <= stages_.back().start || stage.end.size() != stages_.back().end.size())
            throw std::invalid_argument("a stage must begin after the one before it and have the same sources");
        for (size_t source = 0; source < stage.from.size(); ++source) stage.from[source] = progress(static_cast<int64_t>(source), start);
    }
    stages_.push_back(std::move(stage));
}

int64_t Blend::first_of(const Stage &stage, size_t source) { return source ? stage.end[source - 1] : 0; }

// The i-th draw that a stage takes of a source.
int64_t Blend::draw(const Progress &from, int64_t i) {
    const auto left = static_cast<int64_t>(from.left.size());
    return i < left ? from.left[static_cast<size_t>(i)] : from.next + i - left;
}

Permutation Blend::order(const Stage &stage, int64_t block) const {
    const auto number = static_cast<uint64_t>(&stage - stages_.data());
    return {stage.block, keyed_hash(seed_, Stream::blend, static_cast<uint64_t>(block), number)};
}

size_t Blend::stage_at(int64_t sample) const {
    size_t number = stages_.size() - 1;
    while (number && stages_[number].start > sample) --number;
    return number;
}

std::pair<int64_t, int64_t> Blend::operator()(int64_t sample) const {
    if (sample < 0) throw std::out_of_range("sample id " + std::to_string(sample) + " is negative");
    const Stage &stage = stages_[stage_at(sample)];
    if (!blocks_ && sample >= stage.end.back())
        throw std::out_of_range("sample id " + std::to_string(sample) + " is not below the " + std::to_string(stage.end.back()) + " samples");
    if (stage.end.size() == 1) return {0, sample};
    const int64_t block = blocks_ ? (sample - stage.start) / stage.block : 0;
    int64_t rank = sample - stage.start - block * stage.block;
    if (blocks_) rank = order(stage, block)(rank);
    const auto source = static_cast<size_t>(std::upper_bound(stage.end.begin(), stage.end.end(), rank) - stage.end.begin());
    const int64_t first = first_of(stage, source), i = block * (stage.end[source] - first) + rank - first;
    return {source, stage.from.empty() ? i : draw(stage.from[source], i)};
}

int64_t Blend::sample_of(int64_t source, int64_t n) const {
    const auto s = static_cast<size_t>(source);
    if (source < 0 || s >= stages_.front().end.size() || n < 0)
        throw std::out_of_range("draw " + std::to_string(n) + " of source " + std::to_string(source) + " does not exist");
    if (!blocks_) {
        const int64_t first = first_of(stages_.front(), s);
        return n < stages_.front().end[s] - first ? first + n : -1;
    }
    if (stages_.front().end.size() == 1) return n;
    for (size_t number = 0; number < stages_.size(); ++number) {
        const Stage &stage = stages_[number];
        const int64_t first = first_of(stage, s), share = stage.end[s] - first;
        const Progress &from = stage.from[s];
        const auto left = static_cast<int64_t>(from.left.size());
        const int64_t i =
            n >= from.next ? n - from.next + left : std::lower_bound(from.left.begin(), from.left.end(), n) - from.left.begin();
        if (!share || i / share >= (kMaxSamples - stage.start) / stage.block) continue;
        const int64_t block = i / share, sample = stage.start + block * stage.block + order(stage, block).inverse(first + i % share);
        if (number + 1 == stages_.size() || sample < stages_[number + 1].start) return sample;
    }
    return -1;
}

Blend::Progress Blend::progress(int64_t source, int64_t samples) const {
    const auto s = static_cast<size_t>(source);
    if (!blocks_ || source < 0 || s >= stages_.front().end.size() || samples < 0)
        throw std::out_of_range("there is no progress of source " + std::to_string(source) + " at sample " + std::to_string(samples));
    if (stages_.front().end.size() == 1) return {samples, {}};
    const Stage &stage = stages_[stage_at(samples)];
    const Progress &from = stage.from[s];
    const int64_t first = first_of(stage, s), share = stage.end[s] - first, read = samples - stage.start;
    const int64_t block = read / stage.block, rest = read % stage.block, begun = (block + (rest > 0)) * share;
    Progress now;
    if (rest) {
        const Permutation in_block = order(stage, block);
        for (int64_t i = 0; i < share; ++i)
            if (in_block.inverse(first + i) >= rest) now.left.push_back(draw(from, block * share + i));
    }
    const auto left = static_cast<int64_t>(from.left.size());
    if (begun < left) now.left.insert(now.left.end(), from.left.begin() + begun, from.left.end());
    now.next = from.next + std::max<int64_t>(begun - left, 0);
    return now;
}

}  // namespace dnacore
