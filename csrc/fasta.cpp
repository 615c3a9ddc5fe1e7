// FASTA text to documents, streaming. Lines are found with memchr and copied together; the joined
// bytes are then classified in tiles, so that clean sequence costs a few vector compares per 16 bytes.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "dnacore.h"

namespace dnacore {

namespace {

constexpr size_t kStagedBytes = 1 << 18;   // stays in the second-level cache
constexpr size_t kMaxHeader = 1 << 20;     // a longer "header" is not FASTA
constexpr int64_t kTile = 240;             // counts of one tile fit a byte
constexpr const char *kGiveText = "Give text, plain or packed with gzip, Zstandard, xz or bzip2";

enum Kind : uint8_t { kBad, kBase, kN, kAmbiguous, kUracil, kBlank };

constexpr std::array<uint8_t, 256> make_kinds() {
    std::array<uint8_t, 256> kinds{};
    for (const char *code = "ABCDGHKMNRSTUVWY"; *code != '\0'; ++code) {
        uint8_t kind = kAmbiguous;
        if (*code == 'A' || *code == 'C' || *code == 'G' || *code == 'T') kind = kBase;
        if (*code == 'N') kind = kN;
        if (*code == 'U') kind = kUracil;
        kinds[static_cast<uint8_t>(*code)] = kinds[static_cast<uint8_t>(*code) | 0x20] = kind;
    }
    kinds[' '] = kinds['\t'] = kinds['\r'] = kinds['\n'] = kBlank;
    return kinds;
}

constexpr std::array<uint8_t, 256> kKinds = make_kinds();

uint8_t kind_of(char byte) { return kKinds[static_cast<uint8_t>(byte)]; }

bool is_blank(char byte) { return kind_of(byte) == kBlank; }

// Whatever the sign of char.
bool is_printable(char byte) { return byte > ' ' && static_cast<uint8_t>(byte) < 0x7F; }

struct TileCounts {
    uint8_t bases = 0, n = 0, lower_case = 0;
};

inline TileCounts count_tile(const uint8_t *tile, int64_t length) {
    // One byte counter for each letter: the loop stays in byte lanes (gcc turns an "or" of the four
    // comparisons into a 64-bit bit test, which does not vectorise).
    uint8_t a = 0, c = 0, g = 0, t = 0, n = 0, lower_case = 0;
    for (int64_t i = 0; i < length; ++i) {
        const uint8_t upper = tile[i] & 0xDF;
        a += upper == 'A';
        c += upper == 'C';
        g += upper == 'G';
        t += upper == 'T';
        n += upper == 'N';
        lower_case += (tile[i] & 0x20) != 0;
    }
    return {static_cast<uint8_t>(a + c + g + t), n, lower_case};
}

std::string show(char byte) {
    if (is_printable(byte)) return std::string("'") + byte + "'";
    constexpr char digits[] = "0123456789abcdef";
    const auto value = static_cast<uint8_t>(byte);
    return std::string("byte 0x") + digits[value >> 4] + digits[value & 15];
}

std::string why_bad(char byte) {
    const char upper = byte >= 'a' && byte <= 'z' ? static_cast<char>(byte - 32) : byte;
    if (upper != '\0' && std::strchr("EFIJLOPQZ", upper))
        return " is an amino acid, not a nucleotide code (ABCDGHKMNRSTUVWY): this looks like protein. Give nucleotide FASTA";
    if (upper == '-' || upper == '.' || upper == '*')
        return " is a gap: this looks like an alignment. Remove the gaps first, for example with sed '/^>/!s/[-.*]//g'";
    if (upper == 'X')
        return " is not a nucleotide code (ABCDGHKMNRSTUVWY): this looks like protein, or bases masked with X. "
               "Give nucleotide FASTA with masked bases as N";
    if (upper == '>') return " inside a sequence line: the line end before this record is missing. Add it";
    if (upper == '+' || upper == '@') return " is not a nucleotide code: this looks like FASTQ inside a FASTA file. Give FASTQ as a file of its own";
    if (is_printable(byte)) return " is not a nucleotide code (ABCDGHKMNRSTUVWY). Mend or remove this line";
    return " is not text: the file is binary or damaged. " + std::string(kGiveText);
}

void check_at_least(const char *name, int64_t value, int64_t limit) {
    if (value < limit)
        throw std::invalid_argument(std::string(name) + " = " + std::to_string(value) + " must be at least " + std::to_string(limit));
}

}  // namespace

bool NameSet::insert(const std::string &name) {
    uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a, then mixed: its high bits alone are weak
    for (const char byte : name) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3ULL;
    const uint64_t fingerprint = std::max<uint64_t>(mix64(hash), 1);
    Table &table = tables_[fingerprint >> 56];
    if (4 * (table.used + 1) > 3 * table.slots.size()) {
        std::vector<uint64_t> larger(std::max<size_t>(16, 2 * table.slots.size()));
        for (const uint64_t slot : table.slots)
            if (slot != 0) place(larger, slot);
        table.slots = std::move(larger);
    }
    const size_t mask = table.slots.size() - 1;
    for (size_t at = fingerprint & mask; table.slots[at] != 0; at = (at + 1) & mask)
        if (table.slots[at] == fingerprint) return false;
    place(table.slots, fingerprint);
    ++table.used;
    return true;
}

void NameSet::place(std::vector<uint64_t> &slots, uint64_t fingerprint) {
    size_t at = fingerprint & (slots.size() - 1);
    while (slots[at] != 0) at = (at + 1) & (slots.size() - 1);
    slots[at] = fingerprint;
}

FastaScanner::FastaScanner(int64_t min_n_run, int64_t min_length, int64_t max_length)
    : min_n_run_(min_n_run), min_length_(min_length), max_length_(max_length), staged_(kStagedBytes) {
    check_at_least("min_n_run", min_n_run, 1);
    check_at_least("min_length", min_length, 1);
    // Parts of a cut segment are longer than max_length / 2, so they pass min_length too.
    check_at_least("max_length / 2", max_length / 2, min_length);
}

void FastaScanner::feed(const char *text, size_t size) {
    block_end_ = text + size;
    any_text_ |= size > 0;
    for (const char *at = text; at < block_end_;) {
        if (at_line_start_ && *at == '>') {
            scan_staged();
            close_record();
            in_header_ = true;
            at_line_start_ = false;
            ++at;
            continue;
        }
        const auto *newline = static_cast<const char *>(std::memchr(at, '\n', static_cast<size_t>(block_end_ - at)));
        const char *stop = newline ? newline : block_end_;
        if (in_header_)
            append_header(at, stop);
        else
            stage(at, newline && stop > at && stop[-1] == '\r' ? stop - 1 : stop);
        at_line_start_ = newline != nullptr;
        if (!newline) break;
        if (in_header_) open_record();
        ++line_;
        at = newline + 1;
    }
    scan_staged();
}

void FastaScanner::finish() {
    if (in_header_) open_record();
    close_record();
    if (!any_text_) fail(line_, "the file is empty. Give FASTA with at least one record");
    if (num_records_ == 0) fail(line_, "no record: the file holds only blank lines. Give FASTA with at least one record");
    if (num_bases_ == 0)
        fail(line_, "no bases in the whole file (" + std::to_string(num_records_) + " record(s), all empty). Give FASTA with sequence");
}

int64_t FastaScanner::ready_bases() const {
    const int64_t in_run = run_ < min_n_run_ ? run_ : 0;
    const int64_t in_segment = segment_.length < min_length_ ? segment_.length : 0;
    return static_cast<int64_t>(bases.size()) - in_run - in_segment;
}

void FastaScanner::clear_ready() {
    bases.erase(bases.begin(), bases.begin() + ready_bases());
    documents.clear();
    headers.clear();
    counts.clear();
}

void FastaScanner::fail(int64_t line, const std::string &message) const {
    const std::string record = num_records_ > 0 ? ", record '" + name_ + "'" : "";
    throw std::invalid_argument("line " + std::to_string(line) + record + ": " + message);
}

void FastaScanner::fail_at_bad_byte() const {
    int64_t line = staged_line_;
    const char *at = staged_text_;
    for (; at < block_end_ && kind_of(*at) != kBad; ++at) line += *at == '\n';
    if (at == block_end_) throw std::logic_error("FastaScanner: a bad byte was seen but not found again");
    fail(line, show(*at) + why_bad(*at));
}

void FastaScanner::append_header(const char *begin, const char *end) {
    header_.append(begin, end);
    if (header_.size() > kMaxHeader)
        fail(line_, "a header line of more than 1 MiB follows this record: the file is damaged or not FASTA");
}

void FastaScanner::open_record() {
    while (!header_.empty() && is_blank(header_.back())) header_.pop_back();
    if (header_.find('\r') != std::string::npos)
        fail(line_, "a carriage return inside a header: the file has old Macintosh line ends. Convert it, for example with tr '\\r' '\\n'");
    const auto name_end = std::find_if(header_.begin(), header_.end(), is_blank);
    std::string name(header_.begin(), name_end);
    if (name.empty()) fail(line_, "the record that begins here has no name. Write a name directly after '>'");
    for (const char byte : name)
        if (!is_printable(byte)) fail(line_, "the name of the record that begins here holds " + show(byte) + ". Use printable ASCII");
    for (const char byte : header_)
        if (static_cast<uint8_t>(byte) < ' ' && byte != '\t')
            fail(line_, "the header of record '" + name + "' holds " + show(byte) + why_bad(byte));
    if (!names_.insert(name)) repeats_.push_back({name, line_});
    if (watched_line_ == 0 && name == watched_) watched_line_ = line_;
    name_ = std::move(name);
    ++num_records_;
    record_ = RecordCounts{};
    segment_ = Segment{};
    run_ = run_lower_case_ = 0;
    in_header_ = false;
}

void FastaScanner::close_record() {
    if (num_records_ == 0) return;
    end_n_run();
    close_segment();
    if (record_.kept + record_.n_run + record_.short_bases != record_.total)
        throw std::logic_error("FastaScanner: kept and dropped bases of record '" + name_ + "' do not add up to its total");
    num_bases_ += record_.total;
    headers.push_back(std::move(header_));
    header_.clear();
    counts.push_back(record_);
    segment_ = Segment{};
}

void FastaScanner::stage(const char *begin, const char *end) {
    if (num_records_ == 0) return check_before_first_record(begin, end);
    while (begin < end) {
        if (num_staged_ == staged_.size()) scan_staged();
        if (num_staged_ == 0) {
            staged_text_ = begin;
            staged_line_ = line_;
        }
        const size_t length = std::min(static_cast<size_t>(end - begin), staged_.size() - num_staged_);
        std::memcpy(staged_.data() + num_staged_, begin, length);
        num_staged_ += length;
        begin += length;
    }
}

void FastaScanner::check_before_first_record(const char *begin, const char *end) const {
    const char *text = std::find_if_not(begin, end, is_blank);
    if (text == end) return;
    std::string hint = "FASTA begins with a line such as '>chr1'. Remove what comes before it";
    if (*text == '@') hint = "this looks like FASTQ, which a file is read as if it begins with it. Remove what comes before";
    if (!is_printable(*text)) hint = "the file is binary, or begins with a byte order mark. " + std::string(kGiveText);
    fail(line_, show(*text) + " before the first '>': " + hint);
}

void FastaScanner::scan_staged() {
    const auto total = static_cast<int64_t>(num_staged_);
    for (int64_t at = 0; at < total; at += kTile) {
        const uint8_t *tile = staged_.data() + at;
        const int64_t length = std::min(kTile, total - at);
        const TileCounts count = length == kTile ? count_tile(tile, kTile) : count_tile(tile, length);
        if (count.bases == length)
            take_bases(tile, length, count.lower_case);
        else if (count.n == length)
            take_n(tile, length, count.lower_case);
        else
            take_mixed(tile, length);
    }
    num_staged_ = 0;
}

void FastaScanner::take_mixed(const uint8_t *tile, int64_t length) {
    for (const uint8_t *base = tile; base < tile + length; ++base) {
        const uint8_t is_lower = (*base & 0x20) != 0;
        switch (kKinds[*base]) {
            case kBad:
                fail_at_bad_byte();
            case kBlank:
                break;
            case kN:
                take_n(base, 1, is_lower);
                break;
            case kUracil: {
                const uint8_t thymine = 'T' | (is_lower << 5);
                take_bases(&thymine, 1, is_lower);
                ++segment_.u_converted;
                break;
            }
            case kAmbiguous:
                take_bases(base, 1, is_lower);
                ++segment_.ambiguous;
                break;
            default:
                take_bases(base, 1, is_lower);
        }
    }
}

void FastaScanner::take_bases(const uint8_t *begin, int64_t length, int64_t lower_case) {
    end_n_run();
    bases.insert(bases.end(), begin, begin + length);
    record_.total += length;
    segment_.length += length;
    segment_.lower_case += lower_case;
}

void FastaScanner::take_n(const uint8_t *begin, int64_t length, int64_t lower_case) {
    const int64_t before = run_;
    record_.total += length;
    run_ += length;
    run_lower_case_ += lower_case;
    if (run_ < min_n_run_) {
        bases.insert(bases.end(), begin, begin + length);
    } else if (before < min_n_run_) {
        bases.resize(bases.size() - static_cast<size_t>(before));
        close_segment();
    }
}

void FastaScanner::end_n_run() {
    if (run_ == 0) return;
    if (run_ < min_n_run_) {
        segment_.length += run_;
        segment_.n += run_;
        segment_.lower_case += run_lower_case_;
    } else {
        record_.n_run += run_;
        segment_.start = record_.total;
    }
    run_ = run_lower_case_ = 0;
}

void FastaScanner::close_segment() {
    const Segment closed = segment_;
    segment_ = Segment{};
    if (closed.length == 0) return;
    if (closed.length < min_length_) {
        bases.resize(bases.size() - static_cast<size_t>(closed.length));
        record_.short_bases += closed.length;
        ++record_.short_documents;
        return;
    }
    record_.kept += closed.length;
    record_.lower_case += closed.lower_case;
    record_.n += closed.n;
    record_.ambiguous += closed.ambiguous;
    record_.u_converted += closed.u_converted;
    const int64_t parts = (closed.length - 1) / max_length_ + 1;
    int64_t start = closed.start;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t length = closed.length / parts + (part < closed.length % parts);
        documents.push_back({num_records_ - 1, start, start + length});
        start += length;
    }
    record_.documents += parts;
}

}  // namespace dnacore
