// Python sees sketches through these bindings; long loops run with the GIL released.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

#include "bind_bases.h"
#include "sketch.h"

namespace py = pybind11;
using namespace dnacore;

namespace {

using Hashes = py::array_t<uint64_t, py::array::c_style>;
using Int64s = py::array_t<int64_t, py::array::c_style>;

void check_pieces(int64_t bases, const Int64s &starts, const Int64s &ends, const Int64s &limits) {
    if (starts.ndim() != 1 || ends.ndim() != 1 || limits.ndim() != 1)
        throw std::invalid_argument("starts, ends and limits must have 1 dimension each");
    if (starts.size() != ends.size() || starts.size() != limits.size())
        throw std::invalid_argument("starts, ends and limits must be equally many");
    for (py::ssize_t i = 0; i < starts.size(); ++i)
        if (starts.at(i) < 0 || starts.at(i) > ends.at(i) || ends.at(i) > limits.at(i) || limits.at(i) > bases)
            throw std::invalid_argument("piece " + std::to_string(i) + " is not 0 <= start <= end <= limit <= " + std::to_string(bases));
}

py::tuple py_sketch(const AnyBases &bases, const Int64s &starts, const Int64s &ends, const Int64s &limits, int64_t k, int64_t scale) {
    const Sketcher sketcher(k, scale);
    check_pieces(base_count(bases), starts, ends, limits);
    Int64s counts(starts.size());
    const Bases held = view_of(bases);
    const int64_t *start = starts.data(), *end = ends.data(), *limit = limits.data();
    int64_t *count = counts.mutable_data();
    std::vector<uint64_t> hashes;
    {
        const py::gil_scoped_release release;
        Scratch scratch;
        for (py::ssize_t i = 0; i < starts.size(); ++i) {
            const size_t before = hashes.size();
            const int64_t stop = std::min(end[i] + k - 1, limit[i]);  // of the last k-mer that begins in the piece
            if (stop > start[i]) sketcher.add(held.read(start[i], stop - start[i], scratch), 0, end[i] - start[i], stop - start[i], hashes);
            count[i] = static_cast<int64_t>(hashes.size() - before);
        }
    }
    return py::make_tuple(Hashes(static_cast<py::ssize_t>(hashes.size()), hashes.data()), counts);
}

py::tuple offer(KeptSketches &kept, const Hashes &hashes, const Int64s &counts) {
    int64_t total = 0;
    for (py::ssize_t i = 0; i < counts.size(); ++i) {
        if (counts.at(i) < 0) throw std::invalid_argument("counts must not be below 0");
        total += counts.at(i);
    }
    if (hashes.ndim() != 1 || total != hashes.size()) throw std::invalid_argument("counts must add up to the number of hashes");
    Int64s shared(counts.size()), holders(counts.size());
    const uint64_t *hash = hashes.data();
    const int64_t *count = counts.data();
    int64_t *shared_data = shared.mutable_data(), *holder_data = holders.mutable_data();
    {
        const py::gil_scoped_release release;
        for (py::ssize_t i = 0; i < counts.size(); ++i) {
            const Offer result = kept.offer(hash, count[i]);
            shared_data[i] = result.shared;
            holder_data[i] = result.holder;
            hash += count[i];
        }
    }
    return py::make_tuple(shared, holders);
}

}  // namespace

void bind_sketch(py::module_ &module) {
    module.attr("MIN_SKETCH_K") = kMinSketchK;
    module.attr("MAX_SKETCH_K") = kMaxSketchK;
    module.def("sketch", &py_sketch, py::arg("bases").noconvert(), py::arg("starts"), py::arg("ends"), py::arg("limits"), py::kw_only(),
               py::arg("k"), py::arg("scale"));
    py::class_<KeptSketches>(module, "KeptSketches")
        .def(py::init<double, int64_t>(), py::arg("near"), py::arg("min_hashes"))
        .def("offer", &offer, py::arg("hashes"), py::arg("counts"))
        .def_property_readonly("num_hashes", &KeptSketches::num_hashes);
}
