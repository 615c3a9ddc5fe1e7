// Encoder and SplitEncoder: ids, weights and bases used are those of a reading letter by letter.
#include <cmath>
#include <stdexcept>

#include "dnacore.h"
#include "fuzz.h"

using namespace dnacore;

namespace {

struct Setting {
    int64_t k, first_id, first_single, max_tokens;
    std::string order, singles;
    SpecialIds special;
    double lowercase_weight;
    bool reverse;
};

struct Tokens {
    std::vector<int64_t> ids;
    std::vector<double> weights;
    int64_t bases = 0;
};

// Id and weight of the k-mer at `at`; -1 where it is none.
std::pair<int64_t, double> word(const Setting &setting, const std::string &read, size_t at) {
    int64_t id = 0;
    double weight = 0;
    for (size_t i = at; i < at + static_cast<size_t>(setting.k); ++i) {
        const size_t place = i < read.size() ? setting.order.find(upper(read[i])) : std::string::npos;
        if (place == std::string::npos) return {-1, 0};
        id = 4 * id + static_cast<int64_t>(place);
        weight += is_lower(read[i]) ? setting.lowercase_weight : 1;
    }
    return {setting.first_id + id, weight / static_cast<double>(setting.k)};
}

Tokens plain_words(const Setting &setting, const std::string &read) {
    Tokens out;
    for (size_t at = 0; at < read.size(); at += static_cast<size_t>(setting.k)) {
        const auto [id, weight] = word(setting, read, at);
        const bool is_n = setting.k == 1 && upper(read[at]) == 'N';
        out.ids.push_back(id >= 0 ? id : is_n ? setting.special.n : setting.special.unk);
        out.weights.push_back(weight);
    }
    return out;
}

// `letters` is what singles are read from: there, U of the other strand is A.
Tokens plain_split(const Setting &setting, const std::string &read, const std::string &letters) {
    Tokens out;
    size_t at = 0;
    const auto single = [&](size_t i) { return setting.singles.find(upper(letters[i])); };
    while (at < read.size() && static_cast<int64_t>(out.ids.size()) < setting.max_tokens) {
        const auto [id, weight] = word(setting, read, at);
        if (id >= 0) {
            out.ids.push_back(id);
            out.weights.push_back(weight);
            at += static_cast<size_t>(setting.k);
        } else if (single(at) != std::string::npos) {
            out.ids.push_back(setting.first_single + static_cast<int64_t>(single(at)));
            out.weights.push_back(upper(letters[at]) == 'N' ? 0 : is_lower(letters[at]) ? setting.lowercase_weight : 1);
            ++at;
        } else {
            out.ids.push_back(setting.special.unk);
            out.weights.push_back(0);
            while (at < read.size() && single(at) == std::string::npos && word(setting, read, at).first < 0) ++at;
        }
    }
    out.bases = static_cast<int64_t>(at);
    return out;
}

// U is no base of a k-mer, so it has no other strand there.
std::string without_u(std::string bases) {
    for (char &base : bases) base = upper(base) == 'U' ? '?' : base;
    return bases;
}

void compare(const Tokens &expected, const int64_t *ids, const float *weights) {
    for (size_t i = 0; i < expected.ids.size(); ++i) {
        REQUIRE(ids[i] == expected.ids[i]);
        REQUIRE(std::fabs(static_cast<double>(weights[i]) - expected.weights[i]) < 1e-6);
    }
}

void check_words(const Setting &setting, std::string bases) {
    bases.resize(bases.size() / static_cast<size_t>(setting.k) * static_cast<size_t>(setting.k));
    const Exact exact(bases);
    const int64_t count = exact.size() / setting.k;
    const std::unique_ptr<int64_t[]> ids(new int64_t[static_cast<size_t>(count)]);
    const std::unique_ptr<float[]> weights(new float[static_cast<size_t>(count)]);
    const Encoder encoder(setting.k, setting.order, setting.first_id, setting.special, setting.lowercase_weight);
    encoder.encode(exact.data(), count, setting.reverse, ids.get(), weights.get());
    compare(plain_words(setting, strand(without_u(bases), setting.reverse)), ids.get(), weights.get());
}

void check_split(const Setting &setting, const std::string &bases) {
    const Exact exact(bases);
    const int64_t most = std::min(exact.size(), setting.max_tokens);
    const std::unique_ptr<int64_t[]> ids(new int64_t[static_cast<size_t>(most)]);
    const std::unique_ptr<float[]> weights(new float[static_cast<size_t>(most)]);
    const SplitEncoder encoder(setting.k, setting.order, setting.first_id, setting.singles, setting.first_single, setting.special,
                               setting.lowercase_weight);
    const Encoded found = encoder.encode(exact.data(), exact.size(), setting.reverse, most, ids.get(), weights.get());
    const bool has_u = setting.singles.find('U') != std::string::npos;
    const Tokens expected = plain_split(setting, strand(without_u(bases), setting.reverse),
                                        strand(has_u ? bases : without_u(bases), setting.reverse));
    REQUIRE(found.tokens == static_cast<int64_t>(expected.ids.size()));
    REQUIRE(found.bases == expected.bases && found.bases <= exact.size());
    REQUIRE(found.tokens == setting.max_tokens || found.bases == exact.size());
    compare(expected, ids.get(), weights.get());
}

// Settings that are none must be refused, not read somehow.
void check_refused(Input &input) {
    const std::string order = input.text("ACGTACGTNacg", input.byte() % 8 ? 4 : 5), singles = input.text("ACGTUNacgR", input.byte() % 8);
    const int64_t k = input.byte() % 4 ? 1 + input.byte() % 8 : static_cast<int64_t>(input.word());
    std::string sorted = order;
    std::sort(sorted.begin(), sorted.end());
    const bool order_holds = sorted == "ACGT" && k >= 1 && k <= 8;
    bool singles_hold = true;
    for (const char letter : singles) {
        const std::string letters = "ACGTUN", others = "TGCAAN";
        const size_t place = letters.find(letter);
        singles_hold &= place != std::string::npos && singles.find(others[place]) != std::string::npos;
    }
    for (const char letter : std::string("ACGT")) singles_hold &= singles.find(letter) != std::string::npos;
    bool made = false, split_made = false;
    try {
        const Encoder encoder(k, order, 6, {0, 1, 2, 3, 4}, 0.5);
        made = true;
    } catch (const std::invalid_argument &) {
    }
    try {
        const SplitEncoder encoder(k, order, 6, singles, 1, {0, 1, 2, 3, 4}, 0.5);
        split_made = true;
    } catch (const std::invalid_argument &) {
    }
    REQUIRE(made == order_holds);
    REQUIRE(split_made == (order_holds && singles_hold));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const std::string alphabets[] = {"", "ACGT", "ACGTNacgtn", "ACGTUNRacgtunr", "ACGTACGTACGTACGTN"};
    static const std::string all_singles[] = {"ACGT", "ATCGN", "NTGCA", "ACGTUN", "UACGT"};
    Input input(data, size);
    const uint8_t kind = input.byte();
    if (kind >= 0xF0) {
        check_refused(input);
        return 0;
    }
    Setting setting;
    setting.k = 1 + (kind & 7);
    setting.reverse = kind & 8;
    setting.order = "ACGT";
    for (int64_t turns = input.byte() % 24; turns > 0; --turns) std::next_permutation(setting.order.begin(), setting.order.end());
    setting.singles = all_singles[input.byte() % std::size(all_singles)];
    setting.first_single = 5;
    setting.first_id = 20 + input.byte();
    setting.special = {0, 1, 2, 3, 4};
    setting.lowercase_weight = input.share();
    setting.max_tokens = input.byte() & 1 ? input.below(200) : INT64_MAX;
    const std::string bases = input.text(alphabets[input.byte() % std::size(alphabets)], 3000);
    check_words(setting, bases);
    check_split(setting, bases);
    return 0;
}
