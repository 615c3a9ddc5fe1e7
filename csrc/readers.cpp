// The sample index read backwards: bases of a segment -> the draws of an epoch that read them, without a look at any other draw.
#include <algorithm>
#include <stdexcept>

#include "dnacore.h"

namespace dnacore {

int64_t SampleIndex::draw_of(int64_t j, int64_t epoch) const {
    if (rules_.shuffle)
        j = Permutation(num_samples_, keyed_hash(rules_.seed, Stream::order, rules_.source, static_cast<uint64_t>(epoch))).inverse(j);
    return epoch * num_samples_ + j;
}

void SampleIndex::readers(int64_t segment, int64_t start, int64_t end, int64_t epoch, std::vector<Reader> &out) const {
    if (segment < 0 || segment >= num_segments()) throw std::out_of_range("segment " + std::to_string(segment) + " is not one of the index");
    if (start < 0 || end > length(segment) || epoch < 0)
        throw std::out_of_range("bases " + std::to_string(start) + " to " + std::to_string(end) + " of epoch " + std::to_string(epoch) +
                                " are not in a segment of " + std::to_string(length(segment)));
    if (start >= end || num_samples_ == 0) return;
    if (epoch > INT64_MAX / num_samples_ - 1) throw std::out_of_range("epoch " + std::to_string(epoch) + " lies beyond 2^63 draws");
    int64_t first = 0, last = -1;  // of the samples that may read them
    if (rules_.packed) {
        if (!packed_range(segment, start, end, epoch, first, last)) return;
    } else {
        const int64_t before = first_window(segment), count = cut_windows(window_rule_, length(segment)).windows;
        const int64_t stretch = window_ + rules_.jitter;
        first = before + (start < stretch ? 0 : (start - stretch) / rules_.stride + 1);
        last = before + std::min(count - 1, (end - 1) / rules_.stride);
    }
    Sample sample;
    sample.epoch = epoch;
    for (int64_t j = first; j <= last; ++j) {
        sample.draw = draw_of(j, epoch);
        sample.runs.clear();
        if (rules_.packed) {
            resolve_packed(j, sample);
        } else {
            resolve_window(sample.draw, j, sample);
        }
        for (const Run &run : sample.runs)
            if (run.segment == segment && run.start < end && start < run.start + run.length) out.push_back({sample.draw, run});
    }
}

// Packed: bases -> tokens of the segment as this epoch reads it -> places in the token stream -> samples.
bool SampleIndex::packed_range(int64_t segment, int64_t start, int64_t end, int64_t epoch, int64_t &first, int64_t &last) const {
    int64_t place = segment;
    if (!takes_all_) {
        const auto at = std::lower_bound(packed_.begin(), packed_.end(), segment);
        if (at == packed_.end() || *at != segment) return false;
        place = at - packed_.begin();
    }
    const std::shared_ptr<const Layout> current = layout(epoch);
    const int64_t slot = slot_of_segment(place, segment_order(epoch), current->groups);
    const int64_t draw = epoch * num_packed() + slot, shift = phase(draw), k = rules_.k;
    const bool reverse = reversed(draw);
    const int64_t from = (reverse ? length(segment) - end : start) - shift, to = (reverse ? length(segment) - start : end) - shift;
    const int64_t first_token = std::max<int64_t>(from, 0) / k, last_token = std::min((to + k - 1) / k, packed_tokens(segment)) - 1;
    if (to <= 0 || last_token < first_token) return false;
    const int64_t base = current->tokens.start(slot), labels = rules_.label_tokens();
    const int64_t beyond = base + first_token - labels - rules_.context_tokens();
    first = beyond < 0 ? 0 : beyond / labels + 1;
    last = std::min((base + last_token) / labels, num_samples_ - 1);
    return true;
}

}  // namespace dnacore
