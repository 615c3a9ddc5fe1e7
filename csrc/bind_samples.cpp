// Python bindings: Encoder, SplitEncoder, Masking, SampleIndex, BatchFiller, and the two functions every order rests on.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "bind_bases.h"
#include "dnacore.h"

namespace py = pybind11;
using namespace dnacore;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

int64_t item_count(const py::array &array, const char *what) {
    if (array.ndim() != 1) throw std::invalid_argument(std::string(what) + " must have one dimension, got " + std::to_string(array.ndim()));
    return array.shape(0);
}

std::vector<int64_t> to_vector(const Array<int64_t> &array, const char *what) {
    const int64_t count = item_count(array, what);
    return {array.data(), array.data() + count};
}

struct SourceArrays {
    std::shared_ptr<const SampleIndex> index;
    Array<int64_t> segment_start;
    AnyBases bases;
};

using AnyEncoder = std::variant<std::shared_ptr<Encoder>, std::shared_ptr<VariableEncoder>>;

const VariableEncoder *variable_of(const AnyEncoder &encoder) {
    const auto *held = std::get_if<std::shared_ptr<VariableEncoder>>(&encoder);
    return held ? held->get() : nullptr;
}

py::list to_list(const std::vector<Run> &runs) {
    py::list list;
    for (const Run &run : runs) list.append(py::make_tuple(run.segment, run.start, run.length, run.phase, run.reverse, run.separator_after));
    return list;
}

// Sources, blend and encoder behind one call per batch. Keeps the numpy arrays alive.
class BatchFiller {
public:
    BatchFiller(const AnyEncoder &encoder, const std::vector<std::tuple<std::shared_ptr<SampleIndex>, Array<int64_t>, AnyBases>> &sources,
                const std::vector<int64_t> &samples_per_block, uint64_t seed, const std::optional<Masking> &masking,
                const std::vector<std::pair<int64_t, std::vector<int64_t>>> &later_stages)
        : encoder_(encoder), masking_(masking), blend_(make_blend(sources, samples_per_block, seed)) {
        for (const auto &[start, shares] : later_stages) blend_.add_stage(start, shares);
        for (const auto &[index, starts, bases] : sources) {
            if (index->rules().k != k()) throw std::invalid_argument("the index and the encoder have different k");
            if (index->rules().variable != (variable_of(encoder) != nullptr))
                throw std::invalid_argument("the tokens of an index have a fixed length and those of the encoder not, or the other way round");
            if (index->rules().sequence_length != std::get<0>(sources.front())->rules().sequence_length)
                throw std::invalid_argument("the sources have different sequence lengths");
            if (index->rules().masked != masking.has_value())
                throw std::invalid_argument("the rules of an index are masked and the filler has no masking, or the other way round");
            check_bounds(*index, starts, base_count(bases));
            arrays_.push_back({index, starts, bases});
            sources_.push_back({index.get(), starts.data(), view_of(bases)});
        }
    }

    std::pair<int64_t, int64_t> draw(int64_t sample) const { return blend_(sample); }

    // Source, epoch and runs of a sample, without bases that are cut because tokens run out.
    py::tuple locate(int64_t id) const {
        const auto [source, n] = blend_(id);
        const Source &from = sources_[static_cast<size_t>(source)];
        Sample sample;
        from.index->resolve(n, sample);
        if (const VariableEncoder *encoder = variable_of(encoder_)) trim(from, *encoder, sample.runs.front());
        return py::make_tuple(source, sample.epoch, to_list(sample.runs));
    }

    // Sample ids of draws of a source; -1 where none ever reads it.
    Array<int64_t> samples(int64_t source, const Array<int64_t> &draws) const {
        const int64_t count = item_count(draws, "draws");
        Array<int64_t> ids(count);
        for (int64_t i = 0; i < count; ++i) ids.mutable_data()[i] = blend_.sample_of(source, draws.data()[i]);
        return ids;
    }

    py::tuple progress(int64_t source, int64_t num_samples) const {
        const Blend::Progress found = blend_.progress(source, num_samples);
        return py::make_tuple(found.next, Array<int64_t>(static_cast<int64_t>(found.left.size()), found.left.data()));
    }

    // Who reads the bases starts[i] to ends[i] of segments[i] in epochs [first, last): i, draw, start, length and strand of each run.
    py::tuple readers(int64_t source, const Array<int64_t> &segments, const Array<int64_t> &starts, const Array<int64_t> &ends,
                      int64_t first, int64_t last) const {
        if (source < 0 || static_cast<size_t>(source) >= sources_.size()) throw std::out_of_range("there is no source " + std::to_string(source));
        const Source &from = sources_[static_cast<size_t>(source)];
        const int64_t queries = item_count(segments, "segments");
        if (item_count(starts, "starts") != queries || item_count(ends, "ends") != queries)
            throw std::invalid_argument("segments, starts and ends must have one length");
        std::vector<Reader> found;
        std::vector<int64_t> number;
        {
            const py::gil_scoped_release release;
            for (int64_t turn = 0; turn < (last - first) * queries; ++turn) {
                const int64_t i = turn % queries;
                size_t kept = found.size();
                from.index->readers(segments.data()[i], starts.data()[i], ends.data()[i], first + turn / queries, found);
                if (const VariableEncoder *encoder = variable_of(encoder_)) {
                    for (size_t at = kept; at < found.size(); ++at) {
                        Reader reader = found[at];
                        trim(from, *encoder, reader.run);
                        if (reader.run.start < ends.data()[i] && starts.data()[i] < reader.run.start + reader.run.length) found[kept++] = reader;
                    }
                    found.resize(kept);
                }
                number.resize(found.size(), i);
            }
        }
        const auto count = static_cast<int64_t>(found.size());
        Array<int64_t> draws(count), run_starts(count), lengths(count);
        Array<bool> reverse(count);
        for (int64_t i = 0; i < count; ++i) {
            const Reader &reader = found[static_cast<size_t>(i)];
            draws.mutable_data()[i] = reader.draw;
            run_starts.mutable_data()[i] = reader.run.start;
            lengths.mutable_data()[i] = reader.run.length;
            reverse.mutable_data()[i] = reader.run.reverse;
        }
        return py::make_tuple(Array<int64_t>(count, number.data()), draws, run_starts, lengths, reverse);
    }

    // Bases cut because tokens ran out, of all samples filled so far, and how many samples these were.
    std::pair<int64_t, int64_t> cut() const { return {cut_bases_, cut_samples_}; }

    // Tokens, labels and weights; with `documents`, also the number of each token's document within its sample.
    py::tuple fill(const Array<int64_t> &ids, bool documents) const {
        const CutRules &rules = sources_.front().index->rules();
        if (documents && !rules.packed) throw std::invalid_argument("a window lies within one document: there are none to tell apart");
        const int64_t batch = item_count(ids, "sample ids"), S = rules.sequence_length;
        Array<int64_t> tokens({batch, S}), labels({batch, S});
        Array<float> weights({batch, S});
        Array<int32_t> numbers({documents ? batch : 0, S});
        int32_t *number = numbers.mutable_data();
        const int64_t *id = ids.data();
        int64_t *token = tokens.mutable_data(), *label = labels.mutable_data();
        float *weight = weights.mutable_data();
        {
            const py::gil_scoped_release release;
            const VariableEncoder *variable = variable_of(encoder_);
            const Masking *masking = masking_ ? &*masking_ : nullptr;
            std::array<SampleIndex::Wanted, SampleIndex::kSideBySide> wanted;
            std::array<const Source *, SampleIndex::kSideBySide> sources;
            for (int64_t first = 0; first < batch; first += static_cast<int64_t>(wanted.size())) {
                const size_t here = std::min(wanted.size(), static_cast<size_t>(batch - first));
                for (size_t i = 0; i < here; ++i) {
                    const auto [source, draw] = blend_(id[first + static_cast<int64_t>(i)]);
                    sources[i] = &sources_[static_cast<size_t>(source)];
                    wanted[i].index = sources[i]->index;
                    wanted[i].draw = draw;
                }
                SampleIndex::resolve(wanted.data(), here);
                const auto first_runs = [&](auto step) {
                    for (size_t i = 0; i < here; ++i)
                        if (!wanted[i].sample.runs.empty()) (sources[i]->*step)(wanted[i].sample.runs.front());
                };
                first_runs(&Source::ask_start);
                first_runs(&Source::ask_bases);
                for (size_t i = 0; i < here; ++i) {
                    const int64_t row = first + static_cast<int64_t>(i);
                    const Source &from = *sources[i];
                    const Sample &sample = wanted[i].sample;
                    const auto fill_row = [&](const auto &encoder) {
                        return fill_sample(from, encoder, masking, sample, token + row * S, label + row * S, weight + row * S);
                    };
                    const int64_t cut = variable ? fill_row(*variable) : fill_row(*std::get<std::shared_ptr<Encoder>>(encoder_));
                    cut_bases_ += cut;
                    cut_samples_ += cut > 0;
                    if (documents) fill_documents(from.index->rules(), sample, number + row * S);
                }
            }
        }
        if (documents) return py::make_tuple(tokens, labels, weights, numbers);
        return py::make_tuple(tokens, labels, weights);
    }

private:
    // Leaves out of the one run of a window the bases that are cut because tokens run out.
    static void trim(const Source &from, const VariableEncoder &encoder, Run &run) {
        const CutRules &rules = from.index->rules();
        const int64_t most = rules.label_tokens() + rules.context_tokens();
        std::vector<int64_t> ids(static_cast<size_t>(most));
        std::vector<float> weights(static_cast<size_t>(most));
        Scratch scratch;
        const uint8_t *bases = from.read(run, scratch);
        const int64_t read = encoder.encode(bases, run.length, run.reverse, most, ids.data(), weights.data()).bases;
        run.start += run.reverse ? run.length - read : 0;
        run.length = read;
    }

    int64_t k() const {
        const VariableEncoder *variable = variable_of(encoder_);
        return variable ? variable->k() : std::get<std::shared_ptr<Encoder>>(encoder_)->k();
    }

    template <typename Sources>
    static Blend make_blend(const Sources &sources, const std::vector<int64_t> &samples_per_block, uint64_t seed) {
        if (samples_per_block.empty()) {
            std::vector<int64_t> num_samples;
            for (const auto &source : sources) num_samples.push_back(std::get<0>(source)->num_samples());
            return Blend::concatenation(num_samples);
        }
        if (samples_per_block.size() != sources.size()) throw std::invalid_argument("one share of the blend per source is needed");
        return Blend::proportions(samples_per_block, seed);
    }

    static void check_bounds(const SampleIndex &index, const Array<int64_t> &starts, int64_t bases) {
        if (item_count(starts, "segment starts") != index.num_segments()) throw std::invalid_argument("one start per segment is needed");
        for (int64_t segment = 0; segment < index.num_segments(); ++segment) {
            const int64_t start = starts.data()[segment];
            if (start < 0 || index.length(segment) > bases - start)
                throw std::invalid_argument("segment " + std::to_string(segment) + " at " + std::to_string(start) + " with " +
                                            std::to_string(index.length(segment)) + " bases does not lie within " + std::to_string(bases) + " bases");
        }
    }

    AnyEncoder encoder_;
    std::optional<Masking> masking_;
    mutable std::atomic<int64_t> cut_bases_{0}, cut_samples_{0};
    Blend blend_;
    std::vector<SourceArrays> arrays_;
    std::vector<Source> sources_;
};

Array<int64_t> encode(const Encoder &encoder, const Array<uint8_t> &bases) {
    const int64_t length = item_count(bases, "bases"), whole = length / encoder.k(), leftover = length % encoder.k() != 0;
    Array<int64_t> ids(whole + leftover);
    int64_t *out = ids.mutable_data();
    const uint8_t *in = bases.data();
    const py::gil_scoped_release release;
    std::vector<float> weights(static_cast<size_t>(whole));
    encoder.encode(in, whole, false, out, weights.data());
    if (leftover) out[whole] = encoder.special().unk;
    return ids;
}

Array<int64_t> encode_variable(const VariableEncoder &encoder, const Array<uint8_t> &bases) {
    constexpr int64_t kBlock = 65536;  // tokens encoded at a time, so that memory goes with the tokens, not with the bases
    const int64_t length = item_count(bases, "bases");
    const uint8_t *in = bases.data();
    std::vector<int64_t> ids;
    {
        const py::gil_scoped_release release;
        std::vector<float> weights(kBlock);
        for (int64_t at = 0; at < length;) {
            const size_t before = ids.size();
            ids.resize(before + kBlock);
            const Encoded read = encoder.encode(in + at, length - at, false, kBlock, ids.data() + before, weights.data());
            ids.resize(before + static_cast<size_t>(read.tokens));
            at += read.bases;
        }
    }
    return Array<int64_t>(static_cast<int64_t>(ids.size()), ids.data());
}

Lengths keep_lengths(const Array<int64_t> &lengths) {
    const int64_t count = item_count(lengths, "lengths");
    const std::shared_ptr<const void> owner(new Array<int64_t>(lengths), [](const void *array) {
        const py::gil_scoped_acquire acquire;
        delete static_cast<const Array<int64_t> *>(array);
    });
    return {lengths.data(), count, owner};
}

std::shared_ptr<SampleIndex> make_index(const Array<int64_t> &lengths, bool packed, bool shuffle, bool add_bos, bool random_phase,
                                        int64_t sequence_length, int64_t k, int64_t stride, int64_t min_length, double reverse_complement,
                                        uint64_t seed, uint64_t source, bool masked, bool add_eos, bool variable, int64_t window,
                                        int64_t jitter, const std::optional<Array<int64_t>> &groups) {
    CutRules rules;
    rules.packed = packed;
    rules.shuffle = shuffle;
    rules.add_bos = add_bos;
    rules.random_phase = random_phase;
    rules.sequence_length = sequence_length;
    rules.k = k;
    rules.stride = stride;
    rules.min_length = min_length;
    rules.reverse_complement = reverse_complement;
    rules.seed = seed;
    rules.source = source;
    rules.masked = masked;
    rules.add_eos = add_eos;
    rules.variable = variable;
    rules.window = window;
    rules.jitter = jitter;
    return std::make_shared<SampleIndex>(keep_lengths(lengths), rules, groups ? to_vector(*groups, "groups") : std::vector<int64_t>{});
}

py::tuple resolve(const SampleIndex &index, int64_t draw) {
    Sample sample;
    index.resolve(draw, sample);
    return py::make_tuple(sample.epoch, to_list(sample.runs));
}

py::dict coverage(const SampleIndex &index) {
    const Coverage &bases = index.coverage();
    py::dict counts;
    counts["used"] = bases.used;
    counts["short_segments"] = bases.short_segments;
    counts["short_tails"] = bases.short_tails;
    counts["gaps"] = bases.gaps;
    counts["remainders"] = bases.remainders;
    return counts;
}

Array<int64_t> permute(int64_t size, uint64_t key, const Array<int64_t> &positions, bool inverse) {
    const Permutation permutation(size, key);
    const int64_t count = item_count(positions, "positions");
    Array<int64_t> out(count);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t position = positions.data()[i];
        out.mutable_data()[i] = inverse ? permutation.inverse(position) : permutation(position);
    }
    return out;
}

uint64_t hash_stream(uint64_t seed, uint64_t stream, uint64_t a, uint64_t b) {
    return keyed_hash(seed, static_cast<Stream>(stream), a, b);
}

}  // namespace

void bind_samples(py::module_ &module) {
    module.attr("BLEND_BLOCK") = Blend::kBlock;
    module.attr("MAX_BLEND_BLOCK") = Blend::kMaxBlock;
    module.def("keyed_hash", &hash_stream, py::arg("seed"), py::arg("stream"), py::arg("a"), py::arg("b"));
    module.def("permute", &permute, py::arg("size"), py::arg("key"), py::arg("positions").noconvert(), py::arg("inverse") = false);

    py::class_<Encoder, std::shared_ptr<Encoder>>(module, "Encoder")
        .def(py::init([](int64_t k, const std::string &base_order, int64_t first_id, int64_t pad, int64_t bos, int64_t eos, int64_t unk,
                         int64_t n, double lowercase_weight) {
                 return Encoder(k, base_order, first_id, {pad, bos, eos, unk, n}, lowercase_weight);
             }),
             py::kw_only(), py::arg("k"), py::arg("base_order"), py::arg("first_id"), py::arg("pad"), py::arg("bos"), py::arg("eos"),
             py::arg("unk"), py::arg("n"), py::arg("lowercase_weight"))
        .def("encode", &encode, py::arg("bases").noconvert());

    py::class_<VariableEncoder, std::shared_ptr<VariableEncoder>>(module, "VariableEncoder")
        .def("encode", &encode_variable, py::arg("bases").noconvert());
    py::class_<SplitEncoder, VariableEncoder, std::shared_ptr<SplitEncoder>>(module, "SplitEncoder")
        .def(py::init([](int64_t k, const std::string &base_order, int64_t first_id, const std::string &singles, int64_t first_single,
                         int64_t pad, int64_t bos, int64_t eos, int64_t unk, double lowercase_weight) {
                 return std::make_shared<SplitEncoder>(k, base_order, first_id, singles, first_single, SpecialIds{pad, bos, eos, unk, unk},
                                                       lowercase_weight);
             }),
             py::kw_only(), py::arg("k"), py::arg("base_order"), py::arg("first_id"), py::arg("singles"), py::arg("first_single"),
             py::arg("pad"), py::arg("bos"), py::arg("eos"), py::arg("unk"), py::arg("lowercase_weight"));

    py::class_<Masking>(module, "Masking")
        .def(py::init<double, double, double, int64_t, int64_t, int64_t, int64_t>(), py::kw_only(), py::arg("mlm_probability"),
             py::arg("mask_replace_prob"), py::arg("random_replace_prob"), py::arg("mask_id"), py::arg("first_standard"),
             py::arg("num_standard"), py::arg("span_length") = 1);

    py::class_<SampleIndex, std::shared_ptr<SampleIndex>>(module, "SampleIndex")
        .def(py::init(&make_index), py::arg("lengths").noconvert(), py::kw_only(), py::arg("packed"), py::arg("shuffle"),
             py::arg("add_bos"), py::arg("random_phase"), py::arg("sequence_length"), py::arg("k"), py::arg("stride"),
             py::arg("min_length"), py::arg("reverse_complement"), py::arg("seed"), py::arg("source"), py::arg("masked") = false,
             py::arg("add_eos") = false, py::arg("variable") = false, py::arg("window") = 0, py::arg("jitter") = 0,
             py::arg("groups") = py::none())
        .def_property_readonly("num_samples", &SampleIndex::num_samples)
        .def("coverage", &coverage)
        .def("used_segments",
             [](const SampleIndex &index) {
                 const std::vector<int64_t> used = index.used_segments();
                 return Array<int64_t>(static_cast<int64_t>(used.size()), used.data());
             })
        .def("resolve", &resolve, py::arg("draw"));

    py::class_<BatchFiller>(module, "BatchFiller")
        .def(py::init<const AnyEncoder &, const std::vector<std::tuple<std::shared_ptr<SampleIndex>, Array<int64_t>, AnyBases>> &,
                      const std::vector<int64_t> &, uint64_t, const std::optional<Masking> &,
                      const std::vector<std::pair<int64_t, std::vector<int64_t>>> &>(),
             py::arg("encoder"), py::arg("sources").noconvert(), py::arg("samples_per_block"), py::arg("seed"),
             py::arg("masking") = py::none(), py::arg("later_stages") = py::list())
        .def("draw", &BatchFiller::draw, py::arg("sample"))
        .def("locate", &BatchFiller::locate, py::arg("sample"))
        .def("samples", &BatchFiller::samples, py::arg("source"), py::arg("draws").noconvert())
        .def("progress", &BatchFiller::progress, py::arg("source"), py::arg("num_samples"))
        .def("readers", &BatchFiller::readers, py::arg("source"), py::arg("segments").noconvert(), py::arg("starts").noconvert(),
             py::arg("ends").noconvert(), py::arg("first_epoch"), py::arg("last_epoch"))
        .def("cut", &BatchFiller::cut)
        .def("fill", &BatchFiller::fill, py::arg("ids").noconvert(), py::arg("documents") = false);
}
