// The Python module dnapretrain._core: one function per room of the core.
#include <pybind11/pybind11.h>

void bind_text(pybind11::module_ &module);     // bind_text.cpp: FASTA, bases
void bind_packed(pybind11::module_ &module);   // bind_packed.cpp: bases at 2 bits each
void bind_samples(pybind11::module_ &module);  // bind_samples.cpp: k-mers, sample index, batches
void bind_bpe(pybind11::module_ &module);      // bind_bpe.cpp: byte-pair encoding
void bind_sketch(pybind11::module_ &module);   // bind_sketch.cpp: k-mer sketches, duplicates
void bind_files(pybind11::module_ &module);    // bind_files.cpp: written bytes on their way to the disk

PYBIND11_MODULE(_core, module) {
    module.doc() = "Native core of dnapretrain: FASTA to bases, bases to batches.";
    bind_text(module);
    bind_packed(module);  // before those who take packed bases
    bind_samples(module);
    bind_bpe(module);
    bind_sketch(module);
    bind_files(module);
}
