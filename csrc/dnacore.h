// The contract of the native core. Every file of csrc/ sees the others only through this header.
//
// Rules: 64-bit integers for every count and offset; user mistakes throw (std::invalid_argument,
// std::out_of_range, std::runtime_error), never assert; no torch, no global state; long loops run
// with the GIL released (the bindings do that).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace dnacore {

// ---- text to bases: fasta.cpp, bases.cpp -----------------------------------------------------

// Complement of each IUPAC nucleotide code, case kept, U read as T; 0 for every other byte.
extern const std::array<uint8_t, 256> kComplement;

// Writes the reverse complement of bases[0, length) to `out`, which must not overlap it.
// Throws std::invalid_argument at a byte that is not an IUPAC nucleotide code.
void reverse_complement(const uint8_t *bases, int64_t length, uint8_t *out);

// Occurrences of each byte value.
std::array<int64_t, 256> count_bytes(const uint8_t *bases, int64_t length);

// What became of the bases of one record. kept + n_run + short_bases == total. The four counts after
// `kept` are of kept bases; lower_case counts lower-case letters of any kind.
struct RecordCounts {
    int64_t total = 0, kept = 0;
    int64_t lower_case = 0, n = 0, ambiguous = 0, u_converted = 0;
    int64_t n_run = 0, short_bases = 0;
    int64_t documents = 0, short_documents = 0;
};

// One stretch of a contig in the output, 0-based half-open.
struct Document {
    int64_t record, start, end;
};

// Reads FASTA text block by block and cuts its records into documents, in memory bounded by one block
// plus min_length plus min_n_run (and the record names). The bases of all documents follow each other
// in `bases`, whatever the block sizes.
//
// Runs of at least min_n_run N are left out, then segments of fewer than min_length bases, and
// segments longer than max_length are cut into equal parts. Throws std::invalid_argument, its text
// beginning with the line and record, for anything that is not nucleotide FASTA.
// Names seen so far, 12 to 22 bytes of memory each whatever their length: 64-bit fingerprints, in many
// small tables so that none is ever twice in memory as a whole. Two names may share a fingerprint.
class NameSet {
public:
    bool insert(const std::string &name);  // false: this fingerprint was there already

private:
    struct Table {
        std::vector<uint64_t> slots;  // open addressing, 0 is free; a power of two
        size_t used = 0;
    };
    static void place(std::vector<uint64_t> &slots, uint64_t fingerprint);

    std::array<Table, 256> tables_;
};

// A record whose name may have been used before.
struct Repeat {
    std::string name;
    int64_t line;
};

class FastaScanner {
public:
    FastaScanner(int64_t min_n_run, int64_t min_length, int64_t max_length);

    void feed(const char *text, size_t size);
    void finish();  // end of file: closes the last record; no more feed() after it

    // What is ready since the last clear(); `bases` holds ready_bases() of them, then those undecided.
    std::vector<uint8_t> bases;
    std::vector<Document> documents;
    std::vector<std::string> headers;  // without '>', of the records closed
    std::vector<RecordCounts> counts;  // of the records closed
    int64_t ready_bases() const;
    void clear_ready();

    int64_t line() const { return line_; }                   // 1-based, of the text read so far
    const std::string &record_name() const { return name_; }  // empty before the first record

    // Records whose name was seen before, but for one chance in 2^64 for each pair of names: a second
    // scanner that watches for the name tells.
    const std::vector<Repeat> &repeats() const { return repeats_; }
    void watch(const std::string &name) { watched_ = name; }
    int64_t watched_line() const { return watched_line_; }  // of the first record of that name; 0: none so far

private:
    struct Segment {
        int64_t start = 0, length = 0, lower_case = 0, n = 0, ambiguous = 0, u_converted = 0;
    };

    [[noreturn]] void fail(int64_t line, const std::string &message) const;
    [[noreturn]] void fail_at_bad_byte() const;
    void append_header(const char *begin, const char *end);
    void open_record();
    void close_record();
    void stage(const char *begin, const char *end);
    void check_before_first_record(const char *begin, const char *end) const;
    void scan_staged();
    void take_mixed(const uint8_t *tile, int64_t length);
    void take_bases(const uint8_t *begin, int64_t length, int64_t lower_case);
    void take_n(const uint8_t *begin, int64_t length, int64_t lower_case);
    void end_n_run();
    void close_segment();

    const int64_t min_n_run_, min_length_, max_length_;
    int64_t line_ = 1, num_records_ = 0, num_bases_ = 0;
    bool in_header_ = false, at_line_start_ = true, any_text_ = false;
    std::string header_, name_;
    NameSet names_;
    std::vector<Repeat> repeats_;
    std::string watched_;
    int64_t watched_line_ = 0;

    RecordCounts record_;
    Segment segment_;
    int64_t run_ = 0, run_lower_case_ = 0;  // the N run at the end of what was read; in `bases` while under min_n_run

    std::vector<uint8_t> staged_;  // sequence bytes of the present block without line ends, not yet scanned
    size_t num_staged_ = 0;
    const char *staged_text_ = nullptr, *block_end_ = nullptr;  // where they came from, to find the line of an error
    int64_t staged_line_ = 0;
};

// ---- bases as they are stored: packed.cpp ------------------------------------------------------

// What 2 bits cannot say: from a base on, the state is another one. A state is 0 (A, C, G, T), 0x20 (a, c, g, t), or the letter
// that stands there whatever the 2 bits are.
struct Changes {
    std::vector<uint16_t> offsets;  // in the block
    std::vector<uint8_t> states;
    std::vector<int64_t> per_block;
};

// Bases at 2 bits each (base i in bits 2 (i % 4) of byte i / 4; A, C, G, T are 0 to 3), mapped from files: no copy, no state.
class PackedBases {
public:
    static constexpr int64_t kBlock = 65536;
    // `before`: changes before each block of kBlock bases, then all of them: blocks + 1 numbers, in order.
    PackedBases(const uint8_t *packed, int64_t size, const int64_t *before, const uint16_t *offsets, const uint8_t *states);
    int64_t size() const { return size_; }
    // Writes the letters of bases [start, start + length), which lie within [0, size). O(length + log(changes of a block)).
    void read(int64_t start, int64_t length, uint8_t *out) const;

private:
    const uint8_t *packed_;
    int64_t size_;
    const int64_t *before_;
    const uint16_t *offsets_;
    const uint8_t *states_;
};

// Packs bases that begin at a border of blocks: `packed` has room for (length + 3) / 4 bytes, `state` is that of the base before and
// then of the last base. Throws std::invalid_argument at a byte that is no letter.
void pack_bases(const uint8_t *bases, int64_t length, uint8_t &state, uint8_t *packed, Changes &changes);

// The letters, upper case, that packed bytes stand for, four each: as read() has them, or by the path that every processor has.
void unpack_bytes(const uint8_t *packed, int64_t bytes, uint8_t *out, bool plain);

// Room for the letters of one window, kept between windows.
class Scratch {
public:
    uint8_t *room(int64_t length) {
        if (length > size_) {
            bytes_.reset(new uint8_t[static_cast<size_t>(length)]);
            size_ = length;
        }
        return bytes_.get();
    }

private:
    std::unique_ptr<uint8_t[]> bytes_;
    int64_t size_ = 0;
};

// The bases of a shard, stored as letters or packed.
struct Bases {
    const uint8_t *letters = nullptr;
    const PackedBases *packed = nullptr;  // read where there is one
    // The letters of bases [start, start + length): where they lie, or in `scratch`, until it is used again.
    const uint8_t *read(int64_t start, int64_t length, Scratch &scratch) const {
        if (!packed) return letters + start;
        uint8_t *out = scratch.room(length);
        packed->read(start, length, out);
        return out;
    }
    void ask(int64_t start) const {  // read() is about to begin there
        if (!packed) __builtin_prefetch(letters + start);
    }
};

// ---- bases to samples: order.cpp, kmers.cpp, sample_index.cpp, masking.cpp, batch.cpp --------------

// The order of the pipeline: segments (lengths) -> SampleIndex (draw -> runs of bases) -> Blend
// (sample id -> source, draw) -> fill_sample (runs -> tokens, labels, loss weights) with an Encoder
// (a fixed number of bases per token) or a VariableEncoder and, for the masked objective, a Masking.

enum class Stream : uint64_t { order = 1, segments = 2, strand = 3, phase = 4, blend = 5, mask = 6, jitter = 7 };

// The step of splitmix64: 2^64 divided by the golden ratio.
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ULL;

// The finalizer of splitmix64: a bijection of 64-bit numbers that mixes every bit.
inline uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

// Randomness is keyed, never drawn: the same arguments give the same 64 bits everywhere.
uint64_t keyed_hash(uint64_t seed, Stream stream, uint64_t a, uint64_t b);

// A pseudo-random permutation of [0, size), 1 <= size < 2^62, in no memory: a Feistel network on the
// smallest power of two that holds `size`, walked along its cycle until it falls inside.
class Permutation {
public:
    Permutation(int64_t size, uint64_t key);
    int64_t operator()(int64_t i) const;
    int64_t inverse(int64_t i) const;

private:
    uint64_t size_, key_, low_mask_, high_mask_;
    int low_bits_;
};

// Slots of given sizes laid end to end; finds the slot of a position in one or two cache misses.
class PrefixTable {
public:
    PrefixTable() = default;
    explicit PrefixTable(std::vector<int64_t> sizes);
    int64_t slots() const { return start_.empty() ? 0 : static_cast<int64_t>(start_.size()) - 1; }
    int64_t total() const { return start_.empty() ? 0 : start_.back(); }
    int64_t start(int64_t slot) const { return start_[static_cast<size_t>(slot)]; }
    int64_t find(int64_t position) const;  // 0 <= position < total()
    // What find() is about to read, in two steps: the second reads what the first asked for.
    void ask_coarse(int64_t position) const { __builtin_prefetch(&coarse_[static_cast<size_t>(position >> shift_)]); }
    void ask_start(int64_t position) const { __builtin_prefetch(&start_[static_cast<size_t>(coarse_[static_cast<size_t>(position >> shift_)])]); }

private:
    std::vector<int64_t> start_;   // slots + 1 entries
    std::vector<int64_t> coarse_;  // slot that holds position b << shift_
    int shift_ = 0;
};

struct CutRules {
    bool packed = false;
    bool masked = false;      // masked objective: labels are the tokens themselves, not the next ones
    bool shuffle = true;  // false: samples in order, segments in order
    bool add_bos = true;
    bool add_eos = false;   // masked objective: <eos> behind the last token of a sample
    bool variable = false;  // tokens differ in length: k is the number of bases that windows reckon with, and no end is left out
    bool random_phase = false;
    int64_t sequence_length = 0;  // tokens
    int64_t k = 1;                // bases per token
    int64_t stride = 0;           // bases, windows only
    int64_t window = 0;           // bases, windows only; 0: those of a full sample
    int64_t jitter = 0;           // bases, windows only: a window begins at its place plus 0 to so many, drawn anew each time
    int64_t min_length = 1;       // bases
    double reverse_complement = 0;
    uint64_t seed = 0;
    uint64_t source = 0;  // key of this source's draws

    // Labels of a full sample, <bos> and <eos> not counted, which are labels in the masked objective only.
    int64_t label_tokens() const { return sequence_length - (masked ? add_bos + add_eos : 0); }
    // Tokens read before them: without <bos>, the first token of a causal sample is context and no label.
    int64_t context_tokens() const { return masked || add_bos ? 0 : 1; }
};

// Consecutive tokens of one sample read from one segment.
struct Run {
    int64_t segment, start, length;  // bases of the forward strand; a multiple of k, unless tokens differ in length
    int64_t phase;
    bool reverse;
    bool separator_after;
};

struct Sample {
    int64_t draw = 0, epoch = 0;
    std::vector<Run> runs;
};

// A draw, and the run of it that reads the bases asked for.
struct Reader {
    int64_t draw;
    Run run;
};

// Where the bases of all segments went: the five add up to the bases of the segments.
struct Coverage {
    int64_t used = 0, short_segments = 0, short_tails = 0, gaps = 0, remainders = 0;
};

// Bases of each segment, where their owner keeps them: ten million are not copied.
struct Lengths {
    const int64_t *data;
    int64_t count;
    std::shared_ptr<const void> owner;
};

// Draw n of one source -> epoch and runs. A pure function of (lengths, rules, groups, n).
//
// Windows are cut from stretches of window + jitter bases, `stride` apart, from the begin of a segment on: at a keyed offset
// into what room the stretch has. The last stretch of a segment may be shorter: its room is what the window leaves of it.
// `groups`, packed only: the first segment of each group, in order. Groups are permuted each epoch instead of segments, and the
// segments of a group follow each other in their order.
class SampleIndex {
public:
    SampleIndex(Lengths lengths, const CutRules &rules, const std::vector<int64_t> &groups = {});
    int64_t num_samples() const { return num_samples_; }  // of one epoch
    int64_t num_segments() const { return lengths_.count; }
    int64_t length(int64_t segment) const { return lengths_.data[segment]; }
    const CutRules &rules() const { return rules_; }
    const Coverage &coverage() const { return coverage_; }
    std::vector<int64_t> used_segments() const;
    void resolve(int64_t draw, Sample &sample) const;
    // The same for draws side by side: what one reads lies anywhere in memory, and the processor fetches for all at once.
    static constexpr size_t kSideBySide = 16;
    struct Wanted {
        const SampleIndex *index;
        int64_t draw;
        Sample sample;
    };
    static void resolve(Wanted *wanted, size_t count);  // at most kSideBySide
    // Adds the draws of `epoch` that read any of the bases [start, end) of `segment`: the inverse of resolve, in no order.
    void readers(int64_t segment, int64_t start, int64_t end, int64_t epoch, std::vector<Reader> &out) const;

private:
    struct Layout {  // packed: the token stream of one epoch
        int64_t epoch;
        PrefixTable groups;  // place of a group in the order of this epoch -> its slots; empty where segments are permuted
        PrefixTable tokens;  // slot -> tokens, separator included
    };
    static constexpr int64_t kWindowBlock = 32;  // segments
    struct WindowCut {  // windows of a segment, and where its bases went
        int64_t windows = 0, full = 0, used = 0, gaps = 0, left = 0, remainder = 0;
    };
    struct WindowRule {  // bases; `full`: segments at least so long have a full stretch
        int64_t stride, unit, needed, window, stretch, full;
        bool random_phase;
    };
    void build_windows();
    void build_packed(const std::vector<int64_t> &groups);
    static WindowCut cut_windows(const WindowRule &rule, int64_t length);
    int64_t first_window(int64_t segment) const;  // its number among those of all segments
    int64_t num_packed() const { return takes_all_ ? num_segments() : static_cast<int64_t>(packed_.size()); }
    int64_t packed_segment(int64_t place) const { return takes_all_ ? place : packed_[static_cast<size_t>(place)]; }
    int64_t place_of(int64_t draw, Sample &sample) const;
    void resolve_at(int64_t draw, int64_t j, Sample &sample) const;
    void resolve_window(int64_t draw, int64_t j, Sample &sample) const;
    void resolve_packed(int64_t j, Sample &sample) const;
    int64_t draw_of(int64_t j, int64_t epoch) const;
    bool packed_range(int64_t segment, int64_t start, int64_t end, int64_t epoch, int64_t &first, int64_t &last) const;
    int64_t packed_tokens(int64_t segment) const;
    Permutation segment_order(int64_t epoch) const;
    PrefixTable group_slots(int64_t epoch) const;
    int64_t segment_of_slot(int64_t slot, const Permutation &order, const PrefixTable &groups) const;
    int64_t slot_of_segment(int64_t place, const Permutation &order, const PrefixTable &groups) const;
    std::shared_ptr<const Layout> layout(int64_t epoch) const;
    bool reversed(int64_t draw) const;
    int64_t phase(int64_t draw) const;
    int64_t jitter(int64_t draw, int64_t room) const;

    Lengths lengths_;
    CutRules rules_;
    WindowRule window_rule_{};
    Coverage coverage_;
    int64_t num_samples_ = 0;
    int64_t content_ = 0;              // bases that a window reads at most
    int64_t window_ = 0;               // bases of a window: those, and what a phase leaves out
    PrefixTable windows_;              // block of segments -> their windows
    bool takes_all_ = false;           // packed: every segment is long enough
    std::vector<int64_t> packed_;      // otherwise those that are
    PrefixTable groups_;               // group -> its segments among these; empty where segments are permuted
    int64_t stream_tokens_ = 0;        // packed tokens of one epoch
    mutable std::mutex layout_mutex_;  // guards layouts_
    mutable std::shared_ptr<const Layout> layouts_[2];
};

// Sample id -> (source, n-th draw from it), and back. Exact counts in each block of samples; the proportions may change in
// stages, and each draw of a source is read once all the same.
class Blend {
public:
    static constexpr int64_t kBlock = 65536, kMaxBlock = int64_t{1} << 24;
    // What was read of a source: every draw below `next` but those of `left`, which are in order.
    struct Progress {
        int64_t next = 0;
        std::vector<int64_t> left;
    };
    // The samples per block add up to the block, a power of two of kBlock to kMaxBlock.
    static Blend proportions(const std::vector<int64_t> &samples_per_block, uint64_t seed);
    static Blend concatenation(const std::vector<int64_t> &num_samples);
    void add_stage(int64_t start, const std::vector<int64_t> &samples_per_block);  // from this sample id on
    std::pair<int64_t, int64_t> operator()(int64_t sample) const;
    int64_t sample_of(int64_t source, int64_t n) const;        // the sample id of a draw; -1 where none ever reads it
    Progress progress(int64_t source, int64_t samples) const;  // after so many samples; not of a concatenation

private:
    struct Stage {
        int64_t start, block;
        std::vector<int64_t> end;    // cumulative samples: of one block, or of the whole concatenation
        std::vector<Progress> from;  // of each source, where the stage begins
    };
    Blend() = default;
    static int64_t first_of(const Stage &stage, size_t source);
    static int64_t draw(const Progress &from, int64_t i);
    Permutation order(const Stage &stage, int64_t block) const;
    size_t stage_at(int64_t sample) const;

    std::vector<Stage> stages_;
    bool blocks_ = false;
    uint64_t seed_ = 0;
};

struct SpecialIds {
    int64_t pad, bos, eos, unk, n;  // n: token of the base N (unk where the vocabulary has none); eos: -1 where there is none
};

// Bases -> token ids and loss weights, on either strand. Ids of k-mers start at `first_id`.
class Encoder {
public:
    Encoder(int64_t k, const std::string &base_order, int64_t first_id, SpecialIds special, double lowercase_weight);
    int64_t k() const { return k_; }
    const SpecialIds &special() const { return special_; }
    // Encodes `count` tokens from `count` * k bases; `reverse` reads them on the other strand.
    void encode(const uint8_t *bases, int64_t count, bool reverse, int64_t *ids, float *weights) const;

private:
    int64_t k_, first_id_;
    SpecialIds special_;
    std::vector<int64_t> token_[2];  // k = 1: byte -> id, per strand
    std::vector<float> weight_;      // k = 1: byte -> loss weight
    std::vector<uint8_t> code_[2];   // k > 1: byte -> code | ambiguous << 2 | lower << 4, per strand
    std::vector<float> mean_;        // k > 1: number of lower-case bases -> loss weight
};

// What became of a stretch of bases: tokens written, and the bases they stand for.
struct Encoded {
    int64_t tokens = 0, bases = 0;
};

// A tokenizer whose tokens stand for different numbers of bases.
class VariableEncoder {
public:
    virtual ~VariableEncoder() = default;
    virtual int64_t k() const = 0;  // bases per token that windows reckon with
    virtual const SpecialIds &special() const = 0;
    // Encodes bases[0, length), read on the other strand where `reverse`, until they or `max_tokens` run out.
    virtual Encoded encode(const uint8_t *bases, int64_t length, bool reverse, int64_t max_tokens, int64_t *ids, float *weights) const = 0;
};

// The rules of Nucleotide Transformer (k = 6) and AIDO.DNA (k = 1): k-mers of A, C, G and T from the left, each of the
// `singles` a token where no k-mer fits (the next k-mer begins right behind it), a run of anything else one <unk>.
class SplitEncoder : public VariableEncoder {
public:
    // `singles` are letters among ACGTUN, numbered from `first_single`. Throws std::invalid_argument for anything else.
    SplitEncoder(int64_t k, const std::string &base_order, int64_t first_id, const std::string &singles, int64_t first_single,
                 SpecialIds special, double lowercase_weight);
    int64_t k() const override { return k_; }
    const SpecialIds &special() const override { return special_; }
    Encoded encode(const uint8_t *bases, int64_t length, bool reverse, int64_t max_tokens, int64_t *ids, float *weights) const override;

private:
    int64_t k_, first_id_;
    SpecialIds special_;
    std::vector<uint8_t> code_[2];    // as in Encoder
    std::vector<int64_t> single_[2];  // byte -> id, per strand; unk where it is none
    std::vector<float> weight_;       // byte -> loss weight of a single
    std::vector<float> mean_;         // number of lower-case bases in a k-mer -> loss weight
};

// The masked objective (BERT, arXiv:1810.04805): of the tokens that weigh anything, some are chosen; of the chosen, some read
// <mask>, some a standard token (bases or k-mers, no N, no specials) drawn evenly, and the rest stay. A pure function of
// (key, place in the sample): one mix64 chooses a place, a second one says what it reads.
//
// With a span length over 1, spans of so many tokens are chosen instead. They tile the sample from a keyed offset on, and are cut
// at each token that weighs nothing: a span never holds tokens of both sides of it. A span is chosen with mlm_probability
// whatever its length, so that is the probability of each token, too. What its first place draws (<mask>, standard, stay) holds for
// the whole span; which standard token is drawn at each place.
class Masking {
public:
    // Throws std::invalid_argument for probabilities outside 0 to 1, shares over 1 together, no standard token, or a span
    // length outside 1 to 2^31 - 1.
    Masking(double mlm_probability, double mask_replace_prob, double random_replace_prob, int64_t mask_id, int64_t first_standard,
            int64_t num_standard, int64_t span_length = 1);
    // Changes the chosen tokens and sets the weights of all others to 0. A probability of 0 or 1 holds exactly.
    void apply(uint64_t key, int64_t count, int64_t *tokens, float *weights) const;

private:
    void apply_spans(uint64_t key, int64_t count, int64_t *tokens, float *weights) const;

    uint64_t chosen_below_;               // of 2^53
    uint64_t mask_below_, random_below_;  // of 2^32, one after the other
    int64_t mask_id_, first_standard_;
    uint64_t num_standard_, span_length_;
};

// One source of a batch: the index, where each segment starts in `bases`, and the bases.
struct Source {
    const SampleIndex *index;
    const int64_t *segment_start;
    Bases bases;
    const uint8_t *read(const Run &run, Scratch &scratch) const {
        return bases.read(segment_start[run.segment] + run.start, run.length, scratch);
    }
    // What read() is about to read, in two steps.
    void ask_start(const Run &run) const { __builtin_prefetch(segment_start + run.segment); }
    void ask_bases(const Run &run) const { bases.ask(segment_start[run.segment] + run.start); }
};

constexpr int32_t kNoDocument = -1;

// Packed samples of tokens of a fixed length: the number of the document within the sample that each of `sequence_length` tokens
// belongs to. A separator belongs to the document it begins, whose first token a causal model predicts from it; <bos> to the
// first, <eos> at the end to the last; padding to kNoDocument.
void fill_documents(const CutRules &rules, const Sample &sample, int32_t *documents);

// Writes one sample: tokens, labels and loss weights of `sequence_length` places each. `masking` is read where the rules of the
// source are masked, and only there. Returns the bases cut because tokens ran out: 0 where tokens have a fixed length.
int64_t fill_sample(const Source &source, const Encoder &encoder, const Masking *masking, const Sample &sample, int64_t *tokens,
                    int64_t *labels, float *weights);
int64_t fill_sample(const Source &source, const VariableEncoder &encoder, const Masking *masking, const Sample &sample, int64_t *tokens,
                    int64_t *labels, float *weights);

}  // namespace dnacore
