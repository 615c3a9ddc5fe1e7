// Sketcher and KeptSketches: against sets and maps.
#include <map>
#include <set>
#include <stdexcept>

#include "fuzz.h"
#include "sketch.h"

#include "dnacore.h"

using namespace dnacore;

namespace {

std::set<uint64_t> plain_sketch(const std::string &bases, int64_t k, int64_t scale, int64_t start, int64_t end, int64_t limit) {
    std::set<uint64_t> kept;
    const std::string letters = "ACGT";
    for (int64_t at = start; at < end && at + k <= limit; ++at) {
        const std::string word = bases.substr(static_cast<size_t>(at), static_cast<size_t>(k));
        uint64_t codes[2] = {0, 0};
        bool is_word = true;
        for (size_t i = 0; i < word.size(); ++i) {
            const size_t forward = letters.find(upper(word[i])), backward = letters.find(upper(word[word.size() - 1 - i]));
            if (forward == std::string::npos) is_word = false;
            codes[0] = 4 * codes[0] + forward;
            codes[1] = 4 * codes[1] + (3 - backward);
        }
        if (!is_word) continue;
        const uint64_t hash = mix64(std::min(codes[0], codes[1]) + kGolden);
        if (hash <= UINT64_MAX / static_cast<uint64_t>(scale)) kept.insert(hash);
    }
    return kept;
}

void check_sketch(Input &input, const std::string &alphabet) {
    const int64_t k = kMinSketchK + input.byte() % (kMaxSketchK - kMinSketchK + 1), scale = 1 + input.byte() % 16;
    const int64_t first = input.below(64), second = input.below(4096), third = input.below(4096);
    const std::string bases = input.text(alphabet, 4000);
    const Exact exact(bases);
    const int64_t limit = std::min(exact.size(), third), end = std::min(limit, second), start = std::min(end, first);
    const std::vector<uint64_t> before{7, 7, 3};
    std::vector<uint64_t> out = before;
    const Sketcher sketcher(k, scale);
    sketcher.add(exact.data(), start, end, limit, out);
    const std::set<uint64_t> expected = plain_sketch(bases, k, scale, start, end, limit);
    std::vector<uint64_t> all = before;
    all.insert(all.end(), expected.begin(), expected.end());
    REQUIRE(out == all);

    // The other strand of the same k-mers gives the same sketch.
    std::string letters = bases.substr(static_cast<size_t>(start), static_cast<size_t>(limit - start));
    for (char &base : letters) base = upper(base) == 'U' ? '?' : base;
    const Exact turned(strand(letters, true));
    std::vector<uint64_t> whole, back;
    sketcher.add(exact.data(), start, limit, limit, whole);
    sketcher.add(turned.data(), 0, turned.size(), turned.size(), back);
    REQUIRE(whole == back);
}

void check_kept(Input &input) {
    const double near = static_cast<double>(1 + input.byte() % 10) / 10;
    const int64_t min_hashes = 1 + input.byte() % 6;
    const uint64_t stride = input.byte() & 1 ? 1 : 65536;  // equal low bits: all in one place of the table
    const bool many = input.rarely(500);                   // the table grows
    KeptSketches kept(near, min_hashes);
    std::map<uint64_t, int64_t> holders;
    for (int64_t piece = 0; !input.empty() && piece < 200; ++piece) {
        std::set<uint64_t> hashes;
        const uint64_t first = input.byte();
        if (many && piece == 0)
            for (uint64_t i = 0; i < 50'000; ++i) hashes.insert(first + i);
        else
            for (int64_t count = input.byte() % 24; count > 0; --count) hashes.insert((first + input.byte() % 32) * stride);
        const std::vector<uint64_t> list(hashes.begin(), hashes.end());
        std::map<int64_t, int64_t> shared_with;
        int64_t shared = 0, holder = -1, most = 0;
        for (const uint64_t hash : hashes)
            if (const auto found = holders.find(hash); found != holders.end()) {
                ++shared;
                ++shared_with[found->second];
            }
        const auto count = static_cast<int64_t>(hashes.size());
        if (count >= min_hashes && static_cast<double>(shared) >= near * static_cast<double>(count)) {
            for (const auto &[other, times] : shared_with)
                if (times > most) {
                    most = times;
                    holder = other;
                }
        } else {
            for (const uint64_t hash : hashes) holders.emplace(hash, piece);
        }
        const Offer offer = kept.offer(list.data(), count);
        REQUIRE(offer.shared == shared);
        REQUIRE(offer.holder == holder);
        REQUIRE(kept.num_hashes() == static_cast<int64_t>(holders.size()));
    }
}

void check_refused(Input &input) {
    const int64_t k = input.byte(), scale = static_cast<int64_t>(input.word());
    const double near = input.share() * 2 - 0.5;
    const int64_t min_hashes = static_cast<int8_t>(input.byte());
    bool made = false, kept = false;
    try {
        const Sketcher sketcher(k, scale);
        made = true;
    } catch (const std::invalid_argument &) {
    }
    REQUIRE(made == (k >= kMinSketchK && k <= kMaxSketchK && scale >= 1));
    try {
        const KeptSketches sketches(near, min_hashes);
        kept = true;
    } catch (const std::invalid_argument &) {
    }
    REQUIRE(kept == (near > 0 && near <= 1 && min_hashes >= 1));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const std::string alphabets[] = {"", "ACGT", "ACGTacgt", "ACGTNacgtnRU", "AT"};
    Input input(data, size);
    const uint8_t kind = input.byte();
    if (kind < 8) check_refused(input);
    else if (kind < 48) check_kept(input);
    else check_sketch(input, alphabets[kind % std::size(alphabets)]);
    return 0;
}
