// What the bindings have in common.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "arguments.hpp"

namespace nb = nanobind;

namespace vmamba {

using Addresses = std::vector<uintptr_t>;
using Sizes = std::vector<int64_t>;

inline void* pointer(const Addresses& addresses, size_t i) { return reinterpret_cast<void*>(addresses.at(i)); }
inline float* floats(const Addresses& addresses, size_t i) { return static_cast<float*>(pointer(addresses, i)); }

// x, dbc and the parameters from address `first` on. Each route is a sum of 1 (columns), 2 (backward) and 4 (per line).
ImageScan image_scan(int storage, int threads, const std::vector<int>& routes, const Sizes& sizes, const Addresses& in,
                     size_t first = 0);

void bind_products(nb::module_& m);

}  // namespace vmamba
