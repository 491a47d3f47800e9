// Python bindings. Tensors come as addresses of contiguous memory and sizes: the extension knows nothing of PyTorch, so
// it works with any version. `vmamba.ops.backends.native` checks what it passes.
#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

using namespace vmamba;

ImageScan vmamba::image_scan(int storage, int threads, const std::vector<int>& routes, const Sizes& sizes,
                             const Addresses& in, size_t first) {
  if (routes.size() > kMaxRoutes) throw std::invalid_argument("too many routes");
  ImageScan s{};
  s.x = pointer(in, first);
  s.dbc = pointer(in, first + 1);
  s.weight = pointer(in, first + 2);
  s.A = pointer(in, first + 3);
  s.D = pointer(in, first + 4);
  s.bias = pointer(in, first + 5);
  s.batch = sizes.at(0);
  s.height = sizes.at(1);
  s.width = sizes.at(2);
  s.channels = sizes.at(3);
  s.rank = sizes.at(4);
  s.states = sizes.at(5);
  for (const int bits : routes) s.route[s.routes++] = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
  s.storage = Storage(storage);
  s.threads = threads;
  return s;
}

namespace {

ImageScan routes_scan(int storage, int threads, const Sizes& sizes, const Addresses& in) {
  ImageScan s = image_scan(storage, threads, {}, sizes, in);
  s.order = static_cast<const int64_t*>(pointer(in, 6));
  s.routes = int(sizes.at(6));
  s.visits = sizes.at(7);
  s.by_sample = sizes.at(8) != 0;
  s.shares_rows = sizes.at(9) != 0;
  s.by_route = sizes.at(10) != 0;
  return s;
}

ImageGradients image_gradients(uintptr_t dy, const Addresses& out) {
  return {reinterpret_cast<const void*>(dy),
          pointer(out, 0),
          pointer(out, 1),
          pointer(out, 2),
          pointer(out, 3),
          pointer(out, 4),
          pointer(out, 5)};
}

SequenceScan sequence_scan(int storage, int threads, bool softplus, const Sizes& sizes, const Addresses& in) {
  SequenceScan s{};
  s.u = pointer(in, 0);
  s.delta = pointer(in, 1);
  s.A = pointer(in, 2);
  s.b = pointer(in, 3);
  s.c = pointer(in, 4);
  s.D = pointer(in, 5);
  s.bias = pointer(in, 6);
  s.batch = sizes.at(0);
  s.channels = sizes.at(1);
  s.length = sizes.at(2);
  s.states = sizes.at(3);
  s.groups = sizes.at(4);
  s.softplus = softplus;
  s.storage = Storage(storage);
  s.threads = threads;
  return s;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels of the scans; use vmamba.ops.";
  m.def("instruction_sets", &instruction_sets, "Instruction sets this processor runs, the best first.");
  m.def(
      "adopt_openmp", [](const std::string& library) { return adopt_openmp(library.c_str()); }, nb::arg("library"),
      "Run on the threads of the OpenMP runtime that a loaded library is linked with; False if there is none.");
  m.def("poison_memory", &poison_memory, nb::arg("on"), "For tests: working memory starts as NaN.");
  bind_products(m);
  m.def(
      "ss2d_scan",
      [](const std::string& isa, int storage, int threads, const std::vector<int>& routes, const Sizes& sizes,
         const Addresses& in, uintptr_t y) {
        const ImageScan s = image_scan(storage, threads, routes, sizes, in);
        const Kernels& kernels = kernels_for(isa);
        nb::gil_scoped_release release;
        kernels.image_forward(s, reinterpret_cast<void*>(y));
      },
      nb::arg("isa"), nb::arg("storage"), nb::arg("threads"), nb::arg("routes"), nb::arg("sizes"), nb::arg("inputs"),
      nb::arg("y"));
  m.def(
      "ss2d_scan_backward",
      [](const std::string& isa, int storage, int threads, const std::vector<int>& routes, const Sizes& sizes,
         const Addresses& in, uintptr_t dy, const Addresses& out) {
        const ImageScan s = image_scan(storage, threads, routes, sizes, in);
        const ImageGradients g = image_gradients(dy, out);
        const Kernels& kernels = kernels_for(isa);
        nb::gil_scoped_release release;
        kernels.image_backward(s, g);
      },
      nb::arg("isa"), nb::arg("storage"), nb::arg("threads"), nb::arg("routes"), nb::arg("sizes"), nb::arg("inputs"),
      nb::arg("dy"), nb::arg("gradients"));
  m.def(
      "scan_routes",
      [](const std::string& isa, int storage, int threads, const Sizes& sizes, const Addresses& in, uintptr_t y) {
        const ImageScan s = routes_scan(storage, threads, sizes, in);
        const Kernels& kernels = kernels_for(isa);
        nb::gil_scoped_release release;
        kernels.image_forward(s, reinterpret_cast<void*>(y));
      },
      nb::arg("isa"), nb::arg("storage"), nb::arg("threads"), nb::arg("sizes"), nb::arg("inputs"), nb::arg("y"));
  m.def(
      "scan_routes_backward",
      [](const std::string& isa, int storage, int threads, const Sizes& sizes, const Addresses& in, uintptr_t dy,
         const Addresses& out) {
        const ImageScan s = routes_scan(storage, threads, sizes, in);
        const ImageGradients g = image_gradients(dy, out);
        const Kernels& kernels = kernels_for(isa);
        nb::gil_scoped_release release;
        kernels.image_backward(s, g);
      },
      nb::arg("isa"), nb::arg("storage"), nb::arg("threads"), nb::arg("sizes"), nb::arg("inputs"), nb::arg("dy"),
      nb::arg("gradients"));
  m.def(
      "selective_scan",
      [](const std::string& isa, int storage, int threads, bool softplus, const Sizes& sizes, const Addresses& in,
         uintptr_t y, uintptr_t last) {
        const SequenceScan s = sequence_scan(storage, threads, softplus, sizes, in);
        const Kernels& kernels = kernels_for(isa);
        nb::gil_scoped_release release;
        kernels.sequence_forward(s, reinterpret_cast<void*>(y), reinterpret_cast<void*>(last));
      },
      nb::arg("isa"), nb::arg("storage"), nb::arg("threads"), nb::arg("softplus"), nb::arg("sizes"), nb::arg("inputs"),
      nb::arg("y"), nb::arg("last"));
  m.def(
      "selective_scan_backward",
      [](const std::string& isa, int storage, int threads, bool softplus, const Sizes& sizes, const Addresses& in,
         uintptr_t dy, uintptr_t dlast, const Addresses& out) {
        const SequenceScan s = sequence_scan(storage, threads, softplus, sizes, in);
        const SequenceGradients g{reinterpret_cast<const void*>(dy),
                                  reinterpret_cast<const void*>(dlast),
                                  pointer(out, 0),
                                  pointer(out, 1),
                                  pointer(out, 2),
                                  pointer(out, 3),
                                  pointer(out, 4),
                                  pointer(out, 5),
                                  pointer(out, 6)};
        const Kernels& kernels = kernels_for(isa);
        nb::gil_scoped_release release;
        kernels.sequence_backward(s, g);
      },
      nb::arg("isa"), nb::arg("storage"), nb::arg("threads"), nb::arg("softplus"), nb::arg("sizes"), nb::arg("inputs"),
      nb::arg("dy"), nb::arg("dlast"), nb::arg("gradients"));
}
