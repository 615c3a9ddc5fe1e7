// The sample index: draw n of a source -> the stretches of segments it reads, in O(segments) memory.
//
// windows: sample j of an epoch is a window of one segment; prefix sums over the windows of blocks of segments find it.
// packed:  the segments of an epoch, permuted one by one or in groups, make one token stream with a separator between
//          two segments; sample j is the j-th piece of it. Prefix sums are kept for two epochs at a time.
#include <algorithm>
#include <array>
#include <numeric>
#include <stdexcept>

#include "dnacore.h"

namespace dnacore {

namespace {

constexpr int64_t kMaxBases = int64_t{1} << 61;

// a / b of numbers that are not negative; most fit into 32 bits, where division takes half the time.
inline int64_t quotient(int64_t a, int64_t b) {
    return (a | b) >> 32 ? a / b : static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
}

int64_t checked_sum(int64_t total, int64_t length) {
    if (length < 0 || length > kMaxBases - total)
        throw std::invalid_argument("segment lengths must not be negative nor add up to more than 2^61 bases, got " + std::to_string(length));
    return total + length;
}

void check(const CutRules &rules) {
    const auto refuse = [](const std::string &what, int64_t value) { throw std::invalid_argument(what + std::to_string(value)); };
    if (rules.sequence_length < 1 || rules.sequence_length > (int64_t{1} << 40))
        refuse("the sequence length must be 1 to 2^40 tokens, got ", rules.sequence_length);
    if (rules.label_tokens() < 1)
        refuse("the sequence length of a masked sample that begins with <bos> must be at least " +
                   std::to_string(1 + rules.add_bos + rules.add_eos) + " tokens, got ", rules.sequence_length);
    if (rules.add_eos && !rules.masked) throw std::invalid_argument("<eos> behind each sample is for the masked objective");
    if (rules.variable && rules.packed) throw std::invalid_argument("packed samples need tokens of a fixed length");
    if (rules.k < 1 || rules.k > 8) refuse("k must be 1 to 8 bases, got ", rules.k);
    if (!rules.packed && rules.stride < 1) refuse("the stride must be at least 1 base, got ", rules.stride);
    if (rules.window < 0 || rules.jitter < 0 || rules.jitter > kMaxBases)
        refuse("window and jitter must be 0 to 2^61 bases, got ", rules.jitter < 0 || rules.jitter > kMaxBases ? rules.jitter : rules.window);
    if (rules.packed && (rules.window || rules.jitter)) throw std::invalid_argument("window and jitter are for windows, not for packed samples");
    const int64_t tokens = rules.label_tokens() + rules.context_tokens(), unit = rules.variable ? 1 : rules.k;
    if (rules.window % unit || rules.window > tokens * rules.k || (rules.window && rules.window < unit + rules.context_tokens() * rules.k))
        refuse("a window must have the bases of 1 to " + std::to_string(rules.label_tokens()) + " whole tokens" +
                   (rules.context_tokens() ? " and of one before them" : "") + ", got ", rules.window);
    if (rules.min_length < 1) refuse("the minimum length must be at least 1 base, got ", rules.min_length);
    if (!(rules.reverse_complement >= 0 && rules.reverse_complement <= 1))
        throw std::invalid_argument("the probability of the reverse complement must be 0 to 1, got " + std::to_string(rules.reverse_complement));
}

}  // namespace

PrefixTable::PrefixTable(std::vector<int64_t> sizes) : start_(std::move(sizes)) {
    int64_t total = 0;
    for (int64_t &size : start_) {
        const int64_t here = total;
        total += size;
        size = here;
    }
    const auto slots = static_cast<int64_t>(start_.size());
    start_.push_back(total);
    while ((total >> shift_) > slots / 2 + 1) ++shift_;
    coarse_.reserve(static_cast<size_t>((total >> shift_) + 2));
    int64_t slot = 0;
    for (int64_t position = 0; position < total; position += int64_t{1} << shift_) {
        while (start_[static_cast<size_t>(slot + 1)] <= position) ++slot;
        coarse_.push_back(slot);
    }
    coarse_.push_back(slots - 1);
}

int64_t PrefixTable::find(int64_t position) const {
    const auto bucket = static_cast<size_t>(position >> shift_);
    const auto first = start_.begin() + coarse_[bucket] + 1, last = start_.begin() + coarse_[bucket + 1] + 1;
    return std::upper_bound(first, last, position) - start_.begin() - 1;
}

SampleIndex::SampleIndex(Lengths lengths, const CutRules &rules, const std::vector<int64_t> &groups)
    : lengths_(std::move(lengths)), rules_(rules) {
    check(rules_);
    if (rules_.packed) {
        build_packed(groups);
    } else {
        if (!groups.empty()) throw std::invalid_argument("groups of segments are for packed samples");
        build_windows();
    }
}

// Windows per block of segments, not per segment: a table of 80 MB for ten million documents would take longer to write than
// the few divisions that tell the segment within its block.
void SampleIndex::build_windows() {
    content_ = rules_.window ? rules_.window : (rules_.label_tokens() + rules_.context_tokens()) * rules_.k;
    window_ = content_ + (rules_.random_phase ? rules_.k - 1 : 0);
    const int64_t slack = rules_.random_phase ? rules_.k - 1 : 0, unit = rules_.variable ? 1 : rules_.k;
    const int64_t needed = std::max(rules_.min_length, unit + rules_.context_tokens() * rules_.k + slack);
    window_rule_ = {rules_.stride, unit, needed, window_, window_ + rules_.jitter, std::max(window_ + rules_.jitter, rules_.min_length),
                    rules_.random_phase};
    const WindowRule rule = window_rule_;  // a copy of this function's own stays in registers
    std::vector<int64_t> counts;
    counts.reserve(static_cast<size_t>(num_segments() / kWindowBlock + 1));
    Coverage bases;
    int64_t total = 0;
    for (int64_t first = 0; first < num_segments(); first += kWindowBlock) {
        int64_t windows = 0;
        for (int64_t segment = first; segment < std::min(first + kWindowBlock, num_segments()); ++segment) {
            total = checked_sum(total, length(segment));
            const WindowCut cut = cut_windows(rule, length(segment));
            windows += cut.windows;
            bases.used += cut.used;
            bases.gaps += cut.gaps;
            bases.remainders += cut.remainder;
            bases.short_tails += cut.full ? cut.left : 0;
            bases.short_segments += cut.full ? 0 : cut.left;
        }
        counts.push_back(windows);
    }
    coverage_ = bases;
    windows_ = PrefixTable(std::move(counts));
    num_samples_ = windows_.total();
}

// The windows of a segment, and what becomes of every base of it: used where some epoch can read it. A tail is a stretch of
// its own if it is long enough, holds a target whatever the phase, and has bases that no full stretch has. Where tokens
// differ in length, one base makes a token, and the bases cut because tokens run out are counted as used.
SampleIndex::WindowCut SampleIndex::cut_windows(const WindowRule &rule, int64_t length) {
    const int64_t full = length < rule.full ? 0 : quotient(length - rule.stretch, rule.stride) + 1;
    const int64_t read = full ? (full - 1) * rule.stride + rule.stretch : 0;
    const int64_t next = std::min(full * rule.stride, length);
    const int64_t fresh = std::max(next, read);  // first base that only a tail could read
    WindowCut cut;
    cut.windows = cut.full = full;
    if (full) {
        cut.gaps = std::max<int64_t>(rule.stride - rule.stretch, 0) * (full - 1) + fresh - read;
        cut.used = fresh - cut.gaps;
    }
    if (fresh == length) return cut;
    const bool to_the_end = rule.random_phase || rule.unit == 1 || length - next >= rule.window;  // as some phase or offset has it
    const int64_t end = to_the_end ? length : next + quotient(length - next, rule.unit) * rule.unit;
    if (length - next < rule.needed || end <= fresh) {
        cut.left = length - fresh;
        return cut;
    }
    cut.used += end - fresh;
    cut.remainder = length - end;
    cut.windows = full + 1;
    return cut;
}

int64_t SampleIndex::first_window(int64_t segment) const {
    const int64_t block = segment / kWindowBlock;
    int64_t first = windows_.start(block);
    for (int64_t before = block * kWindowBlock; before < segment; ++before) first += cut_windows(window_rule_, length(before)).windows;
    return first;
}

void SampleIndex::build_packed(const std::vector<int64_t> &groups) {
    std::vector<int64_t> sizes(groups.size());
    size_t group = 0;
    const int64_t slack = rules_.random_phase ? rules_.k - 1 : 0;
    const int64_t needed = std::max(rules_.min_length, rules_.k + slack);
    const int64_t k = rules_.k, count = num_segments();
    int64_t total = 0, tokens = 0, words = 0;
    bool takes_all = true;  // until a segment is too short; then those before it are listed
    for (int64_t segment = 0; segment < count; ++segment) {
        const int64_t bases = length(segment);
        total = checked_sum(total, bases);
        if (bases < needed) {
            if (takes_all) {
                packed_.resize(static_cast<size_t>(segment));
                std::iota(packed_.begin(), packed_.end(), 0);
                takes_all = false;
            }
            coverage_.short_segments += bases;
            continue;
        }
        if (!takes_all) packed_.push_back(segment);
        while (group + 1 < groups.size() && groups[group + 1] <= segment) ++group;
        if (!groups.empty()) ++sizes[group];
        words += quotient(bases, k);
        tokens += quotient(bases - slack, k) + 1;
    }
    takes_all_ = takes_all;
    stream_tokens_ = tokens;
    coverage_.used = rules_.random_phase ? total - coverage_.short_segments : words * k;
    coverage_.remainders = total - coverage_.short_segments - coverage_.used;
    if (!groups.empty() && (groups.front() != 0 || !std::is_sorted(groups.begin(), groups.end())))
        throw std::invalid_argument("groups of segments must begin with the first one and be in order");
    sizes.erase(std::remove(sizes.begin(), sizes.end(), 0), sizes.end());
    if (rules_.shuffle && !sizes.empty()) groups_ = PrefixTable(std::move(sizes));
    if (num_packed() == 0) return;
    stream_tokens_ -= 1;  // a separator stands between segments, not after the last
    const int64_t labels = stream_tokens_ - rules_.context_tokens();
    num_samples_ = (labels + rules_.label_tokens() - 1) / rules_.label_tokens();
}

std::vector<int64_t> SampleIndex::used_segments() const {
    std::vector<int64_t> used;
    if (rules_.packed) {
        for (int64_t place = 0; place < (num_samples_ ? num_packed() : 0); ++place) used.push_back(packed_segment(place));
        return used;
    }
    for (int64_t segment = 0; segment < num_segments(); ++segment)
        if (cut_windows(window_rule_, length(segment)).windows) used.push_back(segment);
    return used;
}

bool SampleIndex::reversed(int64_t draw) const {
    const auto threshold = static_cast<uint64_t>(rules_.reverse_complement * 9007199254740992.0);  // 2^53
    return (keyed_hash(rules_.seed, Stream::strand, rules_.source, static_cast<uint64_t>(draw)) >> 11) < threshold;
}

int64_t SampleIndex::phase(int64_t draw) const {
    if (!rules_.random_phase) return 0;
    return static_cast<int64_t>(keyed_hash(rules_.seed, Stream::phase, rules_.source, static_cast<uint64_t>(draw)) %
                                static_cast<uint64_t>(rules_.k));
}

int64_t SampleIndex::jitter(int64_t draw, int64_t room) const {
    if (rules_.jitter == 0) return 0;
    return static_cast<int64_t>(keyed_hash(rules_.seed, Stream::jitter, rules_.source, static_cast<uint64_t>(draw)) %
                                static_cast<uint64_t>(room + 1));
}

void SampleIndex::resolve(int64_t draw, Sample &sample) const { resolve_at(draw, place_of(draw, sample), sample); }

void SampleIndex::resolve(Wanted *wanted, size_t count) {
    std::array<int64_t, kSideBySide> places;
    for (size_t i = 0; i < count; ++i) {
        const Wanted &one = wanted[i];
        places[i] = one.index->place_of(one.draw, wanted[i].sample);
        if (!one.index->rules_.packed) one.index->windows_.ask_coarse(places[i]);
    }
    const auto windows = [&](auto &&step) {
        for (size_t i = 0; i < count; ++i)
            if (!wanted[i].index->rules_.packed) step(*wanted[i].index, places[i]);
    };
    windows([](const SampleIndex &index, int64_t place) { index.windows_.ask_start(place); });
    windows([](const SampleIndex &index, int64_t place) {
        const int64_t first = index.windows_.find(place) * kWindowBlock;
        for (int64_t at = first; at < first + kWindowBlock; at += 8) __builtin_prefetch(index.lengths_.data + at);
    });
    for (size_t i = 0; i < count; ++i) wanted[i].index->resolve_at(wanted[i].draw, places[i], wanted[i].sample);
}

// Where the sample lies among those of its epoch, in the order of the segments.
int64_t SampleIndex::place_of(int64_t draw, Sample &sample) const {
    if (draw < 0) throw std::out_of_range("draw " + std::to_string(draw) + " is negative");
    if (num_samples_ == 0) throw std::out_of_range("the source has no samples");
    sample.draw = draw;
    sample.epoch = draw / num_samples_;
    const int64_t j = draw - sample.epoch * num_samples_;
    if (!rules_.shuffle) return j;
    const uint64_t key = keyed_hash(rules_.seed, Stream::order, rules_.source, static_cast<uint64_t>(sample.epoch));
    return Permutation(num_samples_, key)(j);
}

void SampleIndex::resolve_at(int64_t draw, int64_t j, Sample &sample) const {
    sample.runs.clear();
    if (rules_.packed) {
        resolve_packed(j, sample);
    } else {
        resolve_window(draw, j, sample);
    }
}

void SampleIndex::resolve_window(int64_t draw, int64_t j, Sample &sample) const {
    const int64_t block = windows_.find(j);
    int64_t segment = block * kWindowBlock;
    j -= windows_.start(block);
    for (int64_t count; j >= (count = cut_windows(window_rule_, length(segment)).windows); ++segment) j -= count;
    const int64_t place = j * rules_.stride;
    const int64_t bases = std::min(window_, length(segment) - place);
    const int64_t start = place + jitter(draw, std::min(rules_.jitter, length(segment) - place - bases));
    const int64_t shift = phase(draw);
    const int64_t whole = rules_.variable ? bases - shift : (bases - shift) / rules_.k * rules_.k;
    const int64_t read = std::min(content_, whole);
    const bool reverse = reversed(draw);
    sample.runs.push_back({segment, start + (reverse ? bases - shift - read : shift), read, shift, reverse, false});
}

int64_t SampleIndex::packed_tokens(int64_t segment) const {
    return quotient(length(segment) - (rules_.random_phase ? rules_.k - 1 : 0), rules_.k);
}

// Of the groups, or of the segments where there are none.
Permutation SampleIndex::segment_order(int64_t epoch) const {
    const int64_t count = groups_.slots() ? groups_.slots() : num_packed();
    return {count, keyed_hash(rules_.seed, Stream::segments, rules_.source, static_cast<uint64_t>(epoch))};
}

PrefixTable SampleIndex::group_slots(int64_t epoch) const {
    if (!groups_.slots()) return {};
    const Permutation order = segment_order(epoch);
    std::vector<int64_t> sizes(static_cast<size_t>(groups_.slots()));
    for (int64_t place = 0; place < groups_.slots(); ++place) {
        const int64_t group = order(place);
        sizes[static_cast<size_t>(place)] = groups_.start(group + 1) - groups_.start(group);
    }
    return PrefixTable(std::move(sizes));
}

int64_t SampleIndex::segment_of_slot(int64_t slot, const Permutation &order, const PrefixTable &groups) const {
    if (rules_.shuffle && groups.slots()) {
        const int64_t place = groups.find(slot);
        slot = groups_.start(order(place)) + slot - groups.start(place);
    } else if (rules_.shuffle) {
        slot = order(slot);
    }
    return packed_segment(slot);
}

// `place`: of the segment among those that are long enough.
int64_t SampleIndex::slot_of_segment(int64_t place, const Permutation &order, const PrefixTable &groups) const {
    if (!rules_.shuffle) return place;
    if (!groups.slots()) return order.inverse(place);
    const int64_t group = groups_.find(place);
    return groups.start(order.inverse(group)) + place - groups_.start(group);
}

// Two slots, even and odd epochs: a batch that lies across the end of an epoch rebuilds neither.
std::shared_ptr<const SampleIndex::Layout> SampleIndex::layout(int64_t epoch) const {
    const int64_t key = rules_.shuffle ? epoch : 0;
    const std::lock_guard<std::mutex> lock(layout_mutex_);
    auto &cached = layouts_[key % 2];
    if (cached && cached->epoch == key) return cached;
    const Permutation order = segment_order(key);
    PrefixTable groups = group_slots(key);
    std::vector<int64_t> sizes(static_cast<size_t>(num_packed()));
    // The lengths lie anywhere in memory: those of a block of slots are fetched side by side.
    constexpr int64_t kBlock = 64;
    std::array<int64_t, kBlock> segments;
    for (int64_t first = 0; first < num_packed(); first += kBlock) {
        const int64_t here = std::min(kBlock, num_packed() - first);
        for (int64_t i = 0; i < here; ++i) {
            segments[static_cast<size_t>(i)] = segment_of_slot(first + i, order, groups);
            __builtin_prefetch(lengths_.data + segments[static_cast<size_t>(i)]);
        }
        for (int64_t i = 0; i < here; ++i) sizes[static_cast<size_t>(first + i)] = packed_tokens(segments[static_cast<size_t>(i)]) + 1;
    }
    cached = std::make_shared<const Layout>(Layout{key, std::move(groups), PrefixTable(std::move(sizes))});
    return cached;
}

void SampleIndex::resolve_packed(int64_t j, Sample &sample) const {
    const std::shared_ptr<const Layout> current = layout(sample.epoch);
    int64_t token = j * rules_.label_tokens();
    const int64_t end = std::min(token + rules_.label_tokens() + rules_.context_tokens(), stream_tokens_);
    const Permutation order = segment_order(sample.epoch);
    for (int64_t slot = current->tokens.find(token); token < end; ++slot) {
        const int64_t segment = segment_of_slot(slot, order, current->groups);
        const int64_t draw = sample.epoch * num_packed() + slot;  // strand and phase are the segment's
        const int64_t in_segment = packed_tokens(segment), first = token - current->tokens.start(slot);
        const int64_t last = std::min(in_segment, first + end - token);  // first == in_segment: only its separator is left
        const int64_t shift = phase(draw), begin = shift + first * rules_.k, read = (last - first) * rules_.k;
        const bool reverse = reversed(draw);
        token += last - first;
        const bool separator = token < end;
        token += separator;
        sample.runs.push_back({segment, reverse ? length(segment) - begin - read : begin, read, shift, reverse, separator});
    }
}

}  // namespace dnacore
