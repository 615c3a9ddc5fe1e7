// Bases as Python hands them to the core: an array of letters, or packed ones.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <variant>

#include "dnacore.h"

namespace dnacore {

using LetterArray = pybind11::array_t<uint8_t, pybind11::array::c_style>;

// Packed bases, and the arrays that they lie in.
struct PackedArrays {
    LetterArray packed;
    pybind11::array_t<int64_t, pybind11::array::c_style> before;
    pybind11::array_t<uint16_t, pybind11::array::c_style> offsets;
    LetterArray states;
    PackedBases bases;
};

using AnyBases = std::variant<std::shared_ptr<PackedArrays>, LetterArray>;

inline int64_t base_count(const AnyBases &bases) {
    if (const auto *packed = std::get_if<std::shared_ptr<PackedArrays>>(&bases)) return (*packed)->bases.size();
    const auto &letters = std::get<LetterArray>(bases);
    if (letters.ndim() != 1) throw std::invalid_argument("bases must have one dimension, got " + std::to_string(letters.ndim()));
    return letters.shape(0);
}

inline Bases view_of(const AnyBases &bases) {
    if (const auto *packed = std::get_if<std::shared_ptr<PackedArrays>>(&bases)) return {nullptr, &(*packed)->bases};
    return {std::get<LetterArray>(bases).data(), nullptr};
}

}  // namespace dnacore
