// Python bindings. Tensors come as addresses: the extension knows nothing of PyTorch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <nanobind/stl/tuple.h>

#include <string>
#include <tuple>
#include <vector>

#include "arguments.hpp"
#include "parallel.hpp"

namespace nb = nanobind;

namespace vmamba {
extern const Kernels baseline;
#ifdef VMAMBA_X86
extern const Kernels avx2, avx512;
#endif
}

namespace {
using namespace vmamba;

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#ifdef VMAMBA_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    names.push_back("avx512");
  if (has_avx2) names.push_back("avx2");
#endif
  names.push_back("baseline");
  return names;
}

const Kernels& kernels(const std::string& name) {
#ifdef VMAMBA_X86
  if (name == "avx512") return avx512;
  if (name == "avx2") return avx2;
#endif
  return baseline;
}

ImageScan scan(int storage, int threads, std::vector<std::tuple<bool, bool, bool>> routes, std::vector<int64_t> sizes, std::vector<uintptr_t> in) {
  ImageScan s{};
  s.x = (void*)in[0]; s.dbc = (void*)in[1]; s.weight = (void*)in[2]; s.A = (void*)in[3]; s.D = (void*)in[4]; s.bias = (void*)in[5];
  s.batch = sizes[0]; s.height = sizes[1]; s.width = sizes[2]; s.channels = sizes[3]; s.rank = sizes[4]; s.states = sizes[5];
  s.routes = routes.size();
  for (size_t i = 0; i < routes.size(); ++i) s.route[i] = Route{std::get<0>(routes[i]), std::get<1>(routes[i]), std::get<2>(routes[i])};
  s.storage = Storage(storage); s.threads = threads;
  return s;
}
void ss2d_backward(const std::string& isa, int storage, int threads, std::vector<std::tuple<bool, bool, bool>> routes, std::vector<int64_t> sizes, std::vector<uintptr_t> in, std::vector<uintptr_t> g) {
  ImageScan s = scan(storage, threads, routes, sizes, in);
  ImageGradients gr{(void*)g[0], (void*)g[1], (void*)g[2], (void*)g[3], (void*)g[4], (void*)g[5], (void*)g[6]};
  nb::gil_scoped_release nogil;
  kernels(isa).image_backward(s, gr);
}
void ss2d_forward(const std::string& isa, int storage, int threads, std::vector<std::tuple<bool, bool, bool>> routes, std::vector<int64_t> sizes, std::vector<uintptr_t> in, uintptr_t y) {
  ImageScan s = scan(storage, threads, routes, sizes, in);
  nb::gil_scoped_release nogil;
  kernels(isa).image_forward(s, (void*)y);
}
}

NB_MODULE(_native, m) {
  m.def("instruction_sets", &instruction_sets);
  m.def("adopt_openmp", [](const std::string& p) { return adopt_openmp(p.c_str()); });
  m.def("ss2d_forward", &ss2d_forward);
  m.def("ss2d_backward", &ss2d_backward);
}
