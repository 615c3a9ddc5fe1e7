// What Python's os has no name for.
#include <fcntl.h>
#include <pybind11/pybind11.h>

#include <algorithm>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace py = pybind11;

namespace {

// A hint: where the system cannot do it, fsync does it all at the end and reports what goes wrong.
void begin_writeback(int file, int64_t start, int64_t size) {
#ifdef SYNC_FILE_RANGE_WRITE
    (void)sync_file_range(file, start, size, SYNC_FILE_RANGE_WRITE);
#else
    (void)file, (void)start, (void)size;
#endif
}

// Blocks of megabytes are taken and freed thousands of times; given back each time, their pages are zeroed again each time.
void keep_freed_memory(int64_t size) {
#ifdef __GLIBC__
    const int bytes = static_cast<int>(std::min<int64_t>(size, 1 << 30));
    mallopt(M_TRIM_THRESHOLD, bytes);
    mallopt(M_MMAP_THRESHOLD, std::min(bytes, 1 << 25));  // the most that glibc takes
#else
    (void)size;
#endif
}

}  // namespace

void bind_files(py::module_ &module) {
    module.def("begin_writeback", &begin_writeback, py::arg("file"), py::arg("start"), py::arg("size"), py::call_guard<py::gil_scoped_release>());
    module.def("keep_freed_memory", &keep_freed_memory, py::arg("size"));
}
