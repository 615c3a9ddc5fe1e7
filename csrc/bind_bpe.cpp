// Python bindings: BpeEncoder, BpeTrainer.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "bpe.h"

namespace py = pybind11;
using namespace dnacore;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

int64_t item_count(const Array<uint8_t> &bases) {
    if (bases.ndim() != 1) throw std::invalid_argument("bases must have one dimension, got " + std::to_string(bases.ndim()));
    return bases.shape(0);
}

std::shared_ptr<BpeEncoder> make_encoder(const Array<int64_t> &merges, const std::array<int64_t, 4> &base_ids, int64_t k, int64_t pad,
                                         int64_t bos, int64_t eos, int64_t unk, double lowercase_weight, bool upper_case) {
    if (merges.ndim() != 2 || merges.shape(1) != 3) throw std::invalid_argument("merges must have the shape (n, 3): left, right, product");
    std::vector<BpeMerge> list;
    for (int64_t rank = 0; rank < merges.shape(0); ++rank) list.push_back({merges.at(rank, 0), merges.at(rank, 1), merges.at(rank, 2)});
    return std::make_shared<BpeEncoder>(list, base_ids, k, SpecialIds{pad, bos, eos, unk, unk}, lowercase_weight, upper_case);
}

py::tuple encode(const BpeEncoder &encoder, const Array<uint8_t> &bases, bool reverse) {
    std::vector<int64_t> ids;
    std::vector<int32_t> lengths;
    const int64_t length = item_count(bases);
    const uint8_t *in = bases.data();
    {
        const py::gil_scoped_release release;
        encoder.encode_all(in, length, reverse, ids, lengths);
    }
    const auto count = static_cast<int64_t>(ids.size());
    return py::make_tuple(Array<int64_t>(count, ids.data()), Array<int32_t>(count, lengths.data()));
}

// What fills batches: the first `max_tokens` tokens, their loss weights, and the bases they stand for.
py::tuple encode_window(const BpeEncoder &encoder, const Array<uint8_t> &bases, bool reverse, int64_t max_tokens) {
    const int64_t length = item_count(bases), most = std::min(length, max_tokens);
    if (max_tokens < 0) throw std::invalid_argument("max_tokens must be 0 or more, got " + std::to_string(max_tokens));
    std::vector<int64_t> ids(static_cast<size_t>(most));
    std::vector<float> weights(static_cast<size_t>(most));
    const uint8_t *in = bases.data();
    Encoded read;
    {
        const py::gil_scoped_release release;
        read = encoder.encode(in, length, reverse, most, ids.data(), weights.data());
    }
    return py::make_tuple(Array<int64_t>(read.tokens, ids.data()), Array<float>(read.tokens, weights.data()), read.bases);
}

int64_t feed(BpeTrainer &trainer, const Array<uint8_t> &bases, bool reverse) {
    const int64_t length = item_count(bases);
    const uint8_t *in = bases.data();
    const py::gil_scoped_release release;
    return trainer.feed(in, length, reverse);
}

}  // namespace

void bind_bpe(py::module_ &module) {
    module.attr("MAX_TRAINED_BPE_TOKENS") = BpeTrainer::kMaxTokens;
    py::class_<BpeEncoder, VariableEncoder, std::shared_ptr<BpeEncoder>>(module, "BpeEncoder")
        .def(py::init(&make_encoder), py::kw_only(), py::arg("merges").noconvert(), py::arg("base_ids"), py::arg("k"), py::arg("pad"),
             py::arg("bos"), py::arg("eos"), py::arg("unk"), py::arg("lowercase_weight"), py::arg("upper_case"))
        .def("encode", &encode, py::arg("bases").noconvert(), py::arg("reverse") = false)
        .def("encode_window", &encode_window, py::arg("bases").noconvert(), py::arg("reverse"), py::arg("max_tokens"));

    py::class_<BpeTrainer>(module, "BpeTrainer")
        .def(py::init<int64_t, int64_t, int64_t, int64_t>(), py::kw_only(), py::arg("num_merges"), py::arg("max_length"),
             py::arg("min_count"), py::arg("capacity"))
        .def("feed", &feed, py::arg("bases").noconvert(), py::arg("reverse") = false)
        .def("learn", &BpeTrainer::learn, py::arg("most"), py::call_guard<py::gil_scoped_release>());
}
