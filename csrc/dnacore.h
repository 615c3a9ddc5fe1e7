// The contract of the native core. Every file of csrc/ sees the others only through this header.
//
// Rules: 64-bit integers for every count and offset; user mistakes throw (std::invalid_argument,
// std::out_of_range, std::runtime_error), never assert; no torch, no global state; long loops run
// with the GIL released (the bindings do that).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dnacore {

// ---- text to bases: fasta.cpp, bases.cpp -----------------------------------------------------

// ---- bases to samples: kmers.cpp, sample_index.cpp, batch.cpp ------------------------------------

}  // namespace dnacore
