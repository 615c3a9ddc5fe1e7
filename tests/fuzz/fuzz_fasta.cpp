// FastaScanner: whatever the block borders, it does what the plain reader below does, down to the line of an error.
#include <set>
#include <stdexcept>

#include "dnacore.h"
#include "fuzz.h"

using namespace dnacore;

namespace {

const std::string kCodes = "ABCDGHKMNRSTUVWY", kBases = "ACGTN";
constexpr size_t kLong = 600'000;  // bytes: the scanner's staging buffer holds 2^18

struct Rules {
    int64_t min_n_run, min_length, max_length;
};

struct Result {
    std::string error;  // how its text begins, or all of it
    std::string bases;
    std::vector<std::string> headers;
    std::vector<std::array<int64_t, 3>> documents;
    std::vector<RecordCounts> counts;
    std::vector<std::pair<std::string, int64_t>> repeats;  // names used before, and their lines
};

bool is_blank(char byte) { return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n'; }
bool is_name(char byte) { return byte > 0x20 && byte < 0x7F; }

// The whole text at once, line by line, letter by letter.
class Plain {
public:
    explicit Plain(const Rules &rules) : rules_(rules) {}

    Result read(const std::string &text) {
        size_t start = 0;
        do {
            const size_t end = std::min(text.find('\n', start), text.size());
            if (start < text.size() && !line(text.substr(start, end - start))) return out_;
            if (end == text.size()) break;
            start = end + 1;
            ++line_;
        } while (true);
        close();
        if (out_.headers.empty() || total_ == 0) fail();
        return out_;
    }

private:
    bool fail() {
        out_ = Result{};
        out_.error = "line " + std::to_string(line_) + (names_.empty() ? "" : ", record '" + name_ + "'") + ": ";
        return false;
    }

    bool line(const std::string &text) {
        if (text[0] == '>') {
            close();
            return header(text.substr(1));
        }
        for (const char byte : text) {
            if (is_blank(byte)) continue;
            if (names_.empty() || kCodes.find(upper(byte)) == std::string::npos) return fail();
            const bool uracil = upper(byte) == 'U';
            bases_.push_back(uracil ? static_cast<char>(byte - 1) : byte);
            uracil_.push_back(uracil);
        }
        return true;
    }

    bool header(std::string text) {
        while (!text.empty() && is_blank(text.back())) text.pop_back();
        size_t length = 0;
        while (length < text.size() && !is_blank(text[length])) ++length;
        if (length == 0 || text.find('\r') != std::string::npos) return fail();
        for (size_t i = 0; i < text.size(); ++i)
            if (i < length ? !is_name(text[i]) : static_cast<uint8_t>(text[i]) < 0x20 && text[i] != '\t') return fail();
        name_ = text.substr(0, length);
        open_ = true;
        if (!names_.insert(name_).second) out_.repeats.emplace_back(name_, line_);
        ++records_;
        out_.headers.push_back(text);
        return true;
    }

    void close() {
        if (!open_) return;
        open_ = false;
        record_ = RecordCounts{};
        const auto size = static_cast<int64_t>(bases_.size());
        record_.total = size;
        total_ += size;
        int64_t start = 0, at = 0;
        while (at < size) {
            int64_t run = 0;
            while (at + run < size && upper(bases_[static_cast<size_t>(at + run)]) == 'N') ++run;
            if (run >= rules_.min_n_run) {
                segment(start, at);
                record_.n_run += run;
                start = at + run;
            }
            at += std::max<int64_t>(run, 1);
        }
        segment(start, size);
        out_.counts.push_back(record_);
        bases_.clear();
        uracil_.clear();
    }

    void segment(int64_t start, int64_t end) {
        const int64_t length = end - start;
        if (length == 0) return;
        if (length < rules_.min_length) {
            record_.short_bases += length;
            ++record_.short_documents;
            return;
        }
        for (int64_t i = start; i < end; ++i) {
            const char base = bases_[static_cast<size_t>(i)], letter = upper(base);
            out_.bases.push_back(base);
            ++record_.kept;
            record_.lower_case += is_lower(base);
            record_.n += letter == 'N';
            record_.ambiguous += kBases.find(letter) == std::string::npos;
            record_.u_converted += uracil_[static_cast<size_t>(i)];
        }
        int64_t parts = 1;
        while (parts * rules_.max_length < length) ++parts;
        for (int64_t part = 0; part < parts; ++part, ++record_.documents) {
            const int64_t size = length / parts + (part < length % parts ? 1 : 0);
            out_.documents.push_back({records_ - 1, start, start + size});
            start += size;
        }
    }

    Rules rules_;
    Result out_;
    std::set<std::string> names_;
    std::string name_, bases_;
    std::vector<bool> uracil_;
    RecordCounts record_;
    bool open_ = false;
    int64_t line_ = 1, total_ = 0, records_ = 0;
};

void take(FastaScanner &scanner, Result &result) {
    const int64_t ready = scanner.ready_bases();
    REQUIRE(ready >= 0 && ready <= static_cast<int64_t>(scanner.bases.size()));
    result.bases.append(scanner.bases.begin(), scanner.bases.begin() + ready);
    for (const Document &document : scanner.documents) result.documents.push_back({document.record, document.start, document.end});
    result.headers.insert(result.headers.end(), scanner.headers.begin(), scanner.headers.end());
    result.counts.insert(result.counts.end(), scanner.counts.begin(), scanner.counts.end());
    scanner.clear_ready();
}

// The scanner, fed blocks whose sizes repeat `sizes`.
Result scan(const Rules &rules, const std::string &text, const std::vector<size_t> &sizes) {
    Result result;
    FastaScanner scanner(rules.min_n_run, rules.min_length, rules.max_length);
    try {
        for (size_t at = 0, block = 0; at < text.size(); ++block) {
            const size_t size = std::min(sizes[block % sizes.size()], text.size() - at);
            const Exact copy(text.substr(at, size));
            scanner.feed(reinterpret_cast<const char *>(copy.data()), size);
            at += size;
            if (block % 3 == 2) continue;  // what is ready may wait
            take(scanner, result);
            REQUIRE(static_cast<int64_t>(scanner.bases.size()) < rules.min_length + rules.min_n_run);
        }
        scanner.finish();
        take(scanner, result);
        REQUIRE(scanner.bases.empty());
        for (const Repeat &repeat : scanner.repeats()) result.repeats.emplace_back(repeat.name, repeat.line);
    } catch (const std::invalid_argument &error) {
        result = Result{};
        result.error = error.what();
    }
    return result;
}

bool same(const RecordCounts &a, const RecordCounts &b) {
    return a.total == b.total && a.kept == b.kept && a.lower_case == b.lower_case && a.n == b.n && a.ambiguous == b.ambiguous &&
           a.u_converted == b.u_converted && a.n_run == b.n_run && a.short_bases == b.short_bases && a.documents == b.documents &&
           a.short_documents == b.short_documents;
}

void check_sums(const Result &result) {
    size_t kept = 0;
    for (const RecordCounts &count : result.counts) {
        REQUIRE(count.kept + count.n_run + count.short_bases == count.total);
        kept += static_cast<size_t>(count.kept);
    }
    REQUIRE(kept == result.bases.size());
    REQUIRE(result.bases.find_first_not_of("ABCDGHKMNRSTVWYabcdghkmnrstvwy") == std::string::npos);
    int64_t record = 0, end = 0;
    for (const auto &document : result.documents) {
        REQUIRE(document[0] >= record && document[1] < document[2]);
        REQUIRE(document[0] > record || document[1] >= end);
        REQUIRE(document[2] <= result.counts[static_cast<size_t>(document[0])].total);
        record = document[0];
        end = document[2];
        kept -= static_cast<size_t>(document[2] - document[1]);
    }
    REQUIRE(kept == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const std::string alphabets[] = {"", "ACGTNacgtn\n>x", "ACGTNn\r\n> \t12RYU", "AN\n", "ACGTUNRYKMSWBDHVacgtunrykmswbdhv\n"};
    Input input(data, size);
    const bool is_long = input.rarely(200);  // over the border of the staging buffer
    const uint8_t kind = input.byte();
    Rules rules{};
    rules.min_n_run = 1 + input.byte() % 12;
    rules.min_length = 1 + input.byte() % 300;
    rules.max_length = 2 * rules.min_length + input.byte();
    std::vector<size_t> sizes{1 + static_cast<size_t>(input.byte() % 7), 1 + static_cast<size_t>(input.below(600)), 1};
    if (kind & 0x40) sizes[2] = 1 + static_cast<size_t>(input.below(60'000));
    std::string text = input.text(alphabets[kind % std::size(alphabets)], 2000);
    if (kind & 0x80) text = ">r\n" + text;
    if (is_long && !text.empty()) {
        sizes = {kLong, 100'000};
        const std::string unit = text;
        while (text.size() < kLong / 2) text += unit;
    }
    const Result expected = Plain(rules).read(text);
    const Result whole = scan(rules, text, {kLong}), parts = scan(rules, text, sizes);
    REQUIRE(whole.error == parts.error);
    REQUIRE(expected.error.empty() == whole.error.empty());
    REQUIRE(whole.error.compare(0, expected.error.size(), expected.error) == 0);
    for (const Result *result : {&whole, &parts}) {
        REQUIRE(result->bases == expected.bases);
        REQUIRE(result->documents == expected.documents);
        REQUIRE(result->headers == expected.headers);
        REQUIRE(result->repeats == expected.repeats);
        REQUIRE(result->counts.size() == expected.counts.size());
        for (size_t i = 0; i < expected.counts.size(); ++i) REQUIRE(same(result->counts[i], expected.counts[i]));
        check_sums(*result);
    }
    return 0;
}
