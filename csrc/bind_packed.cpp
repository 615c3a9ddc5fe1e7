// Python sees packed bases as a sequence of letters: slices are decoded arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bind_bases.h"
#include "dnacore.h"

namespace py = pybind11;
using namespace dnacore;

namespace {

std::shared_ptr<PackedArrays> make_packed(const LetterArray &packed, int64_t size, const decltype(PackedArrays::before) &before,
                                          const decltype(PackedArrays::offsets) &offsets, const LetterArray &states) {
    if (packed.ndim() != 1 || before.ndim() != 1 || offsets.ndim() != 1 || states.ndim() != 1)
        throw std::invalid_argument("packed bases and their changes must have one dimension each");
    if (size < 0 || packed.size() != size / 4 + (size % 4 != 0))
        throw std::invalid_argument(std::to_string(packed.size()) + " bytes do not hold " + std::to_string(size) + " bases at 2 bits each");
    const int64_t blocks = size / PackedBases::kBlock + (size % PackedBases::kBlock != 0), *held = before.data();
    bool fits = before.size() == blocks + 1 && held[0] == 0 && held[blocks] == offsets.size() && offsets.size() == states.size();
    for (int64_t block = 0; fits && block < blocks; ++block) fits = held[block] <= held[block + 1];
    if (!fits) throw std::invalid_argument("the changes do not fit " + std::to_string(blocks) + " blocks");
    return std::make_shared<PackedArrays>(
        PackedArrays{packed, before, offsets, states, PackedBases(packed.data(), size, held, offsets.data(), states.data())});
}

LetterArray letters(const PackedArrays &arrays, int64_t start, int64_t length) {
    LetterArray out(length);
    uint8_t *to = out.mutable_data();
    const py::gil_scoped_release release;
    if (length) arrays.bases.read(start, length, to);
    return out;
}

LetterArray slice_of(const PackedArrays &arrays, const py::slice &slice) {
    py::ssize_t start = 0, stop = 0, step = 0, length = 0;
    if (!slice.compute(arrays.bases.size(), &start, &stop, &step, &length)) throw py::error_already_set();
    if (step != 1) throw std::invalid_argument("packed bases are read in steps of 1, not " + std::to_string(step));
    return letters(arrays, start, length);
}

py::tuple py_pack(const LetterArray &bases, int state) {
    if (bases.ndim() != 1) throw std::invalid_argument("bases must have one dimension");
    LetterArray packed((bases.size() + 3) / 4);
    Changes changes;
    auto last = static_cast<uint8_t>(state);
    {
        const uint8_t *from = bases.data();
        uint8_t *to = packed.mutable_data();
        const int64_t length = bases.size();
        const py::gil_scoped_release release;
        pack_bases(from, length, last, to, changes);
    }
    return py::make_tuple(packed, py::array_t<uint16_t>(static_cast<py::ssize_t>(changes.offsets.size()), changes.offsets.data()),
                          LetterArray(static_cast<py::ssize_t>(changes.states.size()), changes.states.data()),
                          py::array_t<int64_t>(static_cast<py::ssize_t>(changes.per_block.size()), changes.per_block.data()),
                          static_cast<int>(last));
}

LetterArray py_unpack(const LetterArray &packed, bool plain) {
    if (packed.ndim() != 1) throw std::invalid_argument("packed bases must have one dimension");
    LetterArray out(packed.size() * 4);
    unpack_bytes(packed.data(), packed.size(), out.mutable_data(), plain);
    return out;
}

}  // namespace

void bind_packed(py::module_ &module) {
    module.attr("PACKED_BLOCK") = PackedBases::kBlock;
    module.def("pack_bases", &py_pack, py::arg("bases").noconvert(), py::arg("state"));
    module.def("unpack_bytes", &py_unpack, py::arg("packed").noconvert(), py::arg("plain"));
    py::class_<PackedArrays, std::shared_ptr<PackedArrays>>(module, "PackedBases")
        .def(py::init(&make_packed), py::arg("packed").noconvert(), py::arg("size"), py::arg("before").noconvert(),
             py::arg("offsets").noconvert(), py::arg("states").noconvert())
        .def("__len__", [](const PackedArrays &arrays) { return arrays.bases.size(); })
        .def("__getitem__", &slice_of)
        .def("__array__",
             [](const PackedArrays &arrays, const py::object &dtype, const py::object &) -> py::object {
                 py::object whole = letters(arrays, 0, arrays.bases.size());
                 return dtype.is_none() ? whole : whole.attr("astype")(dtype);
             },
             py::arg("dtype") = py::none(), py::arg("copy") = py::none());
}
