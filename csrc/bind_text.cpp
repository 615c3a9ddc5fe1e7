// Python sees FASTA and bases through these bindings; long loops run with the GIL released.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "dnacore.h"

namespace py = pybind11;
using namespace dnacore;

namespace {

using Bases = py::array_t<uint8_t, py::array::c_style>;

constexpr int64_t RecordCounts::*kCountFields[] = {
    &RecordCounts::total,     &RecordCounts::kept,        &RecordCounts::lower_case, &RecordCounts::n,
    &RecordCounts::ambiguous, &RecordCounts::u_converted, &RecordCounts::n_run,      &RecordCounts::short_bases,
    &RecordCounts::documents, &RecordCounts::short_documents,
};
constexpr const char *kCountNames[] = {"total",       "kept",  "lower_case",  "n",         "ambiguous",
                                       "u_converted", "n_run", "short_bases", "documents", "short_documents"};
constexpr py::ssize_t kNumCounts = std::size(kCountFields);
static_assert(std::size(kCountFields) == std::size(kCountNames));
static_assert(sizeof(RecordCounts) == kNumCounts * sizeof(int64_t), "every count is exported");

void check_one_dimension(const Bases &bases) {
    if (bases.ndim() != 1) throw std::invalid_argument("bases must have 1 dimension, not " + std::to_string(bases.ndim()));
}

void feed(FastaScanner &scanner, const py::buffer &block) {
    const py::buffer_info info = block.request();
    if (info.itemsize != 1 || info.ndim != 1 || info.strides[0] != 1)
        throw std::invalid_argument("feed() takes a contiguous buffer of bytes");
    const py::gil_scoped_release release;
    scanner.feed(static_cast<const char *>(info.ptr), static_cast<size_t>(info.size));
}

py::tuple take(FastaScanner &scanner) {
    Bases bases(scanner.ready_bases(), scanner.bases.data());
    py::array_t<int64_t> documents({static_cast<py::ssize_t>(scanner.documents.size()), py::ssize_t{3}});
    auto document = documents.mutable_unchecked<2>();
    for (py::ssize_t i = 0; i < document.shape(0); ++i) {
        const Document &source = scanner.documents[static_cast<size_t>(i)];
        document(i, 0) = source.record;
        document(i, 1) = source.start;
        document(i, 2) = source.end;
    }
    py::list headers;
    for (const std::string &header : scanner.headers) headers.append(py::bytes(header));
    py::array_t<int64_t> counts({static_cast<py::ssize_t>(scanner.counts.size()), kNumCounts});
    auto count = counts.mutable_unchecked<2>();
    for (py::ssize_t i = 0; i < count.shape(0); ++i)
        for (py::ssize_t j = 0; j < kNumCounts; ++j) count(i, j) = scanner.counts[static_cast<size_t>(i)].*kCountFields[j];
    scanner.clear_ready();
    return py::make_tuple(bases, documents, headers, counts);
}

Bases py_reverse_complement(const Bases &bases) {
    check_one_dimension(bases);
    Bases out(bases.size());
    uint8_t *out_data = out.mutable_data();
    {
        const py::gil_scoped_release release;
        reverse_complement(bases.data(), bases.size(), out_data);
    }
    return out;
}

py::array_t<int64_t> py_count_bytes(const Bases &bases) {
    check_one_dimension(bases);
    std::array<int64_t, 256> counts;
    {
        const py::gil_scoped_release release;
        counts = count_bytes(bases.data(), bases.size());
    }
    return py::array_t<int64_t>(static_cast<py::ssize_t>(counts.size()), counts.data());
}

}  // namespace

void bind_text(py::module_ &module) {
    py::class_<FastaScanner>(module, "FastaScanner")
        .def(py::init<int64_t, int64_t, int64_t>(), py::arg("min_n_run"), py::arg("min_length"), py::arg("max_length"))
        .def("feed", &feed, py::arg("block"))
        .def("finish", &FastaScanner::finish, py::call_guard<py::gil_scoped_release>())
        .def("take", &take)
        .def("watch", &FastaScanner::watch, py::arg("name"))
        .def_property_readonly("repeats",
                               [](const FastaScanner &scanner) {
                                   py::list repeats;
                                   for (const Repeat &repeat : scanner.repeats())
                                       repeats.append(py::make_tuple(repeat.name, repeat.line));
                                   return repeats;
                               })
        .def_property_readonly("watched_line", &FastaScanner::watched_line)
        .def_property_readonly("line", &FastaScanner::line)
        .def_property_readonly("record_name", &FastaScanner::record_name);
    py::list names;
    for (const char *name : kCountNames) names.append(py::str(name));
    module.attr("RECORD_COUNTS") = py::tuple(names);
    module.def("reverse_complement", &py_reverse_complement, py::arg("bases").noconvert());
    module.def("count_bytes", &py_count_bytes, py::arg("bases").noconvert());
}
