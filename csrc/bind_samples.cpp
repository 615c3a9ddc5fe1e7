// Python bindings: Encoder, Masking, SampleIndex, BatchFiller, and the two functions every order rests on.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

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
    Array<uint8_t> bases;
};

// Sources, blend and encoder behind one call per batch. Keeps the numpy arrays alive.
class BatchFiller {
public:
    BatchFiller(const Encoder &encoder, const std::vector<std::tuple<std::shared_ptr<SampleIndex>, Array<int64_t>, Array<uint8_t>>> &sources,
                const std::vector<int64_t> &samples_per_block, uint64_t seed, const std::optional<Masking> &masking)
        : encoder_(encoder), masking_(masking), blend_(make_blend(sources, samples_per_block, seed)) {
        for (const auto &[index, starts, bases] : sources) {
            if (index->rules().k != encoder.k()) throw std::invalid_argument("the index and the encoder have different k");
            if (index->rules().sequence_length != std::get<0>(sources.front())->rules().sequence_length)
                throw std::invalid_argument("the sources have different sequence lengths");
            if (index->rules().masked != masking.has_value())
                throw std::invalid_argument("the rules of an index are masked and the filler has no masking, or the other way round");
            check_bounds(*index, starts, item_count(bases, "bases"));
            arrays_.push_back({index, starts, bases});
            sources_.push_back({index.get(), starts.data(), bases.data()});
        }
    }

    std::pair<int64_t, int64_t> draw(int64_t sample) const { return blend_(sample); }

    py::tuple fill(const Array<int64_t> &ids) const {
        const int64_t batch = item_count(ids, "sample ids"), S = sources_.front().index->rules().sequence_length;
        Array<int64_t> tokens({batch, S}), labels({batch, S});
        Array<float> weights({batch, S});
        const int64_t *id = ids.data();
        int64_t *token = tokens.mutable_data(), *label = labels.mutable_data();
        float *weight = weights.mutable_data();
        {
            const py::gil_scoped_release release;
            Sample sample;
            for (int64_t row = 0; row < batch; ++row) {
                const auto [source, n] = blend_(id[row]);
                const Source &from = sources_[static_cast<size_t>(source)];
                from.index->resolve(n, sample);
                fill_sample(from, encoder_, masking_ ? &*masking_ : nullptr, sample, token + row * S, label + row * S, weight + row * S);
            }
        }
        return py::make_tuple(tokens, labels, weights);
    }

private:
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

    Encoder encoder_;
    std::optional<Masking> masking_;
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

std::shared_ptr<SampleIndex> make_index(const Array<int64_t> &lengths, bool packed, bool shuffle, bool add_bos, bool random_phase,
                                        int64_t sequence_length, int64_t k, int64_t stride, int64_t min_length, double reverse_complement,
                                        uint64_t seed, uint64_t source, bool masked) {
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
    return std::make_shared<SampleIndex>(to_vector(lengths, "lengths"), rules);
}

py::tuple resolve(const SampleIndex &index, int64_t draw) {
    Sample sample;
    index.resolve(draw, sample);
    py::list runs;
    for (const Run &run : sample.runs)
        runs.append(py::make_tuple(run.segment, run.start, run.length, run.phase, run.reverse, run.separator_after));
    return py::make_tuple(sample.epoch, runs);
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

Array<int64_t> permute(int64_t size, uint64_t key, const Array<int64_t> &positions) {
    const Permutation permutation(size, key);
    const int64_t count = item_count(positions, "positions");
    Array<int64_t> out(count);
    for (int64_t i = 0; i < count; ++i) out.mutable_data()[i] = permutation(positions.data()[i]);
    return out;
}

uint64_t hash_stream(uint64_t seed, uint64_t stream, uint64_t a, uint64_t b) {
    return keyed_hash(seed, static_cast<Stream>(stream), a, b);
}

}  // namespace

void bind_samples(py::module_ &module) {
    module.attr("BLEND_BLOCK") = Blend::kBlock;
    module.def("keyed_hash", &hash_stream, py::arg("seed"), py::arg("stream"), py::arg("a"), py::arg("b"));
    module.def("permute", &permute, py::arg("size"), py::arg("key"), py::arg("positions").noconvert());

    py::class_<Encoder>(module, "Encoder")
        .def(py::init([](int64_t k, const std::string &base_order, int64_t first_id, int64_t pad, int64_t bos, int64_t eos, int64_t unk,
                         int64_t n, double lowercase_weight) {
                 return Encoder(k, base_order, first_id, {pad, bos, eos, unk, n}, lowercase_weight);
             }),
             py::kw_only(), py::arg("k"), py::arg("base_order"), py::arg("first_id"), py::arg("pad"), py::arg("bos"), py::arg("eos"),
             py::arg("unk"), py::arg("n"), py::arg("lowercase_weight"))
        .def("encode", &encode, py::arg("bases").noconvert());

    py::class_<Masking>(module, "Masking")
        .def(py::init<double, double, double, int64_t, int64_t, int64_t>(), py::kw_only(), py::arg("mlm_probability"),
             py::arg("mask_replace_prob"), py::arg("random_replace_prob"), py::arg("mask_id"), py::arg("first_standard"),
             py::arg("num_standard"));

    py::class_<SampleIndex, std::shared_ptr<SampleIndex>>(module, "SampleIndex")
        .def(py::init(&make_index), py::arg("lengths").noconvert(), py::kw_only(), py::arg("packed"), py::arg("shuffle"),
             py::arg("add_bos"), py::arg("random_phase"), py::arg("sequence_length"), py::arg("k"), py::arg("stride"),
             py::arg("min_length"), py::arg("reverse_complement"), py::arg("seed"), py::arg("source"), py::arg("masked") = false)
        .def_property_readonly("num_samples", &SampleIndex::num_samples)
        .def("coverage", &coverage)
        .def("used_segments", [](const SampleIndex &index) { return py::array_t<int64_t>(py::cast(index.used_segments())); })
        .def("resolve", &resolve, py::arg("draw"));

    py::class_<BatchFiller>(module, "BatchFiller")
        .def(py::init<const Encoder &, const std::vector<std::tuple<std::shared_ptr<SampleIndex>, Array<int64_t>, Array<uint8_t>>> &,
                      const std::vector<int64_t> &, uint64_t, const std::optional<Masking> &>(),
             py::arg("encoder"), py::arg("sources").noconvert(), py::arg("samples_per_block"), py::arg("seed"),
             py::arg("masking") = py::none())
        .def("draw", &BatchFiller::draw, py::arg("sample"))
        .def("fill", &BatchFiller::fill, py::arg("ids").noconvert());
}
