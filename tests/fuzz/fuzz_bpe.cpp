// BpeEncoder and BpeTrainer: against merging by rank, one pair at a time, and counting anew after each merge.
#include <cmath>
#include <map>
#include <set>
#include <stdexcept>

#include "bpe.h"
#include "fuzz.h"

using namespace dnacore;

namespace {

constexpr int64_t kUnk = 3, kFirstId = 10;
const std::string kBases = "ACGT";

// Merges by token number: 0 to 3 are the bases, 4 and on what the merges make.
struct Merges {
    std::vector<std::pair<size_t, size_t>> parts;
    std::vector<std::string> text{"A", "C", "G", "T"};

    void add(size_t left, size_t right) {
        parts.emplace_back(left, right);
        text.push_back(text[left] + text[right]);
    }
    bool has(const std::string &wanted) const { return std::find(text.begin(), text.end(), wanted) != text.end(); }
};

using Word = std::vector<size_t>;

void merge_all(Word &word, size_t left, size_t right, size_t product) {
    Word out;
    for (size_t i = 0; i < word.size(); ++i) {
        const bool found = i + 1 < word.size() && word[i] == left && word[i + 1] == right;
        out.push_back(found ? product : word[i]);
        i += found;
    }
    word = out;
}

// Words: runs of A, C, G and T. Every other byte stands alone, as -1 would: an empty word.
std::vector<Word> words_of(const std::string &read, bool upper_case) {
    std::vector<Word> words;
    bool inside = false;
    for (const char byte : read) {
        const size_t code = kBases.find(upper_case ? upper(byte) : byte);
        if (code == std::string::npos) words.emplace_back();
        else if (inside) words.back().push_back(code);
        else words.push_back({code});
        inside = code != std::string::npos;
    }
    return words;
}

struct Tokens {
    std::vector<int64_t> ids;
    std::vector<int32_t> lengths;
};

Tokens plain_encode(const Merges &merges, const std::string &read, bool upper_case) {
    Tokens out;
    for (Word word : words_of(read, upper_case)) {
        if (word.empty()) {
            out.ids.push_back(kUnk);
            out.lengths.push_back(1);
        }
        for (size_t rank = 0; rank < merges.parts.size(); ++rank) merge_all(word, merges.parts[rank].first, merges.parts[rank].second, rank + 4);
        for (const size_t token : word) {
            out.ids.push_back(kFirstId + static_cast<int64_t>(token));
            out.lengths.push_back(static_cast<int32_t>(merges.text[token].size()));
        }
    }
    return out;
}

BpeEncoder make_encoder(const Merges &merges, double lowercase_weight, bool upper_case) {
    std::vector<BpeMerge> list;
    for (size_t rank = 0; rank < merges.parts.size(); ++rank)
        list.push_back({kFirstId + static_cast<int64_t>(merges.parts[rank].first), kFirstId + static_cast<int64_t>(merges.parts[rank].second),
                        kFirstId + static_cast<int64_t>(rank + 4)});
    return BpeEncoder(list, {kFirstId, kFirstId + 1, kFirstId + 2, kFirstId + 3}, 5, {0, 1, 2, kUnk, kUnk}, lowercase_weight, upper_case);
}

void check_encoder(const BpeEncoder &encoder, const Merges &merges, const std::string &bases, double lowercase_weight, bool upper_case,
                   bool reverse, int64_t most) {
    std::string letters = bases;
    for (char &base : letters) base = upper(base) == 'U' ? '?' : base;  // no base of a word
    const std::string read = strand(letters, reverse);
    const Tokens expected = plain_encode(merges, read, upper_case);
    const Exact exact(bases);
    Tokens all;
    encoder.encode_all(exact.data(), exact.size(), reverse, all.ids, all.lengths);
    REQUIRE(all.ids == expected.ids);
    REQUIRE(all.lengths == expected.lengths);

    most = std::min(most, exact.size());
    const std::unique_ptr<int64_t[]> ids(new int64_t[static_cast<size_t>(most)]);
    const std::unique_ptr<float[]> weights(new float[static_cast<size_t>(most)]);
    const Encoded found = encoder.encode(exact.data(), exact.size(), reverse, most, ids.get(), weights.get());
    const auto count = std::min<size_t>(expected.ids.size(), static_cast<size_t>(most));
    REQUIRE(found.tokens == static_cast<int64_t>(count));
    size_t at = 0;
    for (size_t i = 0; i < count; ++i) {
        REQUIRE(ids[i] == expected.ids[i]);
        double weight = 0;
        for (int32_t j = 0; j < expected.lengths[i]; ++j) weight += is_lower(read[at++]) ? lowercase_weight : 1;
        weight = expected.ids[i] == kUnk ? 0 : weight / expected.lengths[i];
        REQUIRE(std::fabs(static_cast<double>(weights[i]) - weight) < 1e-5);
    }
    REQUIRE(found.bases == static_cast<int64_t>(at));
}

// Learns as the rules say, counting all pairs of all words again after each merge; the counts found go to `times`.
Merges plain_train(std::vector<Word> &words, size_t num_merges, size_t max_length, int64_t min_count, std::vector<int64_t> &times) {
    Merges merges;
    while (merges.parts.size() < num_merges) {
        std::map<std::pair<size_t, size_t>, int64_t> counts;
        for (const Word &word : words)
            for (size_t i = 1; i < word.size(); ++i) ++counts[{word[i - 1], word[i]}];
        std::pair<size_t, size_t> best;
        int64_t most = 0;
        for (const auto &[pair, count] : counts) {
            const bool fits = max_length == 0 || merges.text[pair.first].size() + merges.text[pair.second].size() <= max_length;
            if (!fits || count < std::max<int64_t>(min_count, 1) || count <= most) continue;
            best = pair;
            most = count;
        }
        if (most == 0) break;
        for (Word &word : words) merge_all(word, best.first, best.second, merges.parts.size() + 4);
        merges.add(best.first, best.second);
        times.push_back(most);
    }
    return merges;
}

Merges check_trainer(Input &input, const std::vector<std::string> &documents, bool reverse) {
    const size_t num_merges = 1 + input.byte() % 40;
    size_t max_length = input.byte() % 12;
    if (max_length == 1) max_length = 0;
    const int64_t min_count = input.byte() % 4;
    BpeTrainer trainer(static_cast<int64_t>(num_merges), static_cast<int64_t>(max_length), min_count, input.byte());
    std::vector<Word> words;
    for (const std::string &document : documents) {
        const Exact exact(document);
        std::string letters = document;
        for (char &base : letters) base = upper(base) == 'U' ? '?' : base;
        int64_t taken = 0;
        for (Word &word : words_of(strand(letters, reverse), true)) {
            taken += static_cast<int64_t>(word.size());
            if (!word.empty()) words.push_back(word);
        }
        REQUIRE(trainer.feed(exact.data(), exact.size(), reverse) == taken);
    }
    std::vector<int64_t> times;
    const Merges expected = plain_train(words, num_merges, max_length, min_count, times);
    size_t learned = 0;
    const int64_t step = 1 + input.byte() % 8;
    for (;;) {
        const auto found = trainer.learn(step);
        for (const auto &[left, right, count] : found) {
            REQUIRE(learned < expected.parts.size());
            REQUIRE(left == static_cast<int64_t>(expected.parts[learned].first));
            REQUIRE(right == static_cast<int64_t>(expected.parts[learned].second));
            REQUIRE(count == times[learned]);
            ++learned;
        }
        if (static_cast<int64_t>(found.size()) < step) break;
    }
    REQUIRE(learned == expected.parts.size());
    size_t symbols = 1 + words.size();  // one end of a word before the first, and one behind each
    for (const Word &word : words) symbols += word.size();
    REQUIRE(trainer.num_symbols() == static_cast<int64_t>(symbols));
    return expected;
}

// Merges that are no list of merges are refused with std::invalid_argument, whatever else is wrong.
void check_refused(Input &input) {
    std::vector<BpeMerge> list;
    std::set<int64_t> known{0, 1, 2, 3};
    bool holds = true;
    for (int64_t count = input.byte() % 20; count > 0; --count) {
        const BpeMerge merge{input.byte() % 12, input.byte() % 12, input.byte() % 40};
        holds = holds && known.count(merge.left) && known.count(merge.right);
        holds = known.insert(merge.product).second && holds;
        list.push_back(merge);
    }
    try {
        const BpeEncoder encoder(list, {0, 1, 2, 3}, input.byte() % 4, {0, 1, 2, 3, 3}, 1, true);
        REQUIRE(holds);
    } catch (const std::invalid_argument &) {
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const std::string alphabets[] = {"", "ACGT", "AC", "ACGTNacgtn", "ACGTUNRacgtu"};
    Input input(data, size);
    const uint8_t kind = input.byte();
    if (kind >= 0xF8) {
        check_refused(input);
        return 0;
    }
    const bool reverse = kind & 1, upper_case = kind & 2, train = kind & 4;
    const double lowercase_weight = input.share();
    const int64_t most = input.byte() & 1 ? input.below(100) : INT64_MAX;
    const std::string &alphabet = alphabets[input.byte() % std::size(alphabets)];
    Merges merges;
    std::vector<std::string> documents;
    if (train) {
        Input settings = input;
        for (int i = 0; i < 5; ++i) input.byte();
        const size_t cut = static_cast<size_t>(input.below(400));
        const std::string text = input.text(alphabet, 800);
        documents = {text.substr(0, cut), cut < text.size() ? text.substr(cut) : ""};
        merges = check_trainer(settings, documents, reverse);
    } else {
        for (int64_t count = input.byte() % 24; count > 0; --count) {
            size_t left = input.byte() % merges.text.size(), right = input.byte() % merges.text.size();
            if (kind & 16 && left < 4) left &= 1;  // two letters: merges that stand in each other's way
            if (kind & 16 && right < 4) right &= 1;
            if (!merges.has(merges.text[left] + merges.text[right])) merges.add(left, right);
        }
        for (int i = 0; i < 8 && !input.empty(); ++i) documents.push_back(input.text(alphabet, static_cast<size_t>(1 + input.byte())));
    }
    const BpeEncoder encoder = make_encoder(merges, lowercase_weight, upper_case);  // dear: all documents on both strands share it
    for (const std::string &document : documents)
        for (const bool other : {false, true}) check_encoder(encoder, merges, document, lowercase_weight, upper_case, other, most);
    return 0;
}
