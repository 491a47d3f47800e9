// Python bindings of the frozen layers' kernels, under the same contract as those of the scans (module.cpp).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "dispatch.hpp"
#include "product_dispatch.hpp"

namespace vmamba {
namespace {

// (inputs, outputs) of a layer; null for one that is not there.
PackedLayer layer(Precision precision, const Addresses& addresses, const Sizes& sizes, size_t i) {
  return {pointer(addresses, i), sizes.at(2 * i), sizes.at(2 * i + 1), precision};
}

void linear(const std::string& isa, int precision, int threads, const Sizes& sizes, const Addresses& in, float eps,
            bool gelu) {
  const PackedLinear<> l{{pointer(in, 0), sizes.at(1), sizes.at(2), Precision(precision)},
                         floats(in, 1),
                         sizes.at(0),
                         eps,
                         floats(in, 2),
                         floats(in, 3),
                         gelu,
                         threads};
  const Products& products = products_for(isa);
  nb::gil_scoped_release release;
  products.linear(l);
}

void convolution(const std::string& isa, int precision, int threads, const Sizes& sizes, const Addresses& in, float eps,
                 bool gelu) {
  PackedConvolution c{};
  c.batch = sizes.at(0);
  c.channels = sizes.at(1);
  c.height = sizes.at(2);
  c.width = sizes.at(3);
  c.by_image = sizes.at(4);
  c.by_channel = sizes.at(5);
  c.by_row = sizes.at(6);
  c.by_column = sizes.at(7);
  c.kernel = sizes.at(8);
  c.stride = sizes.at(9);
  c.padding = sizes.at(10);
  c.layer = {pointer(in, 0), c.kernel * c.kernel * c.channels, sizes.at(11), Precision(precision)};
  c.x = floats(in, 1);
  c.norm_weight = floats(in, 2);
  c.norm_bias = floats(in, 3);
  c.y = floats(in, 4);
  c.eps = eps;
  c.gelu = gelu;
  c.threads = threads;
  const Products& products = products_for(isa);
  nb::gil_scoped_release release;
  products.convolution(c);
}

void block(const std::string& isa, const std::string& scan_isa, int precision, int threads,
           const std::vector<int>& routes, const Sizes& sizes, const Addresses& layers, const Sizes& layer_sizes,
           const Addresses& in, const std::vector<float>& eps) {
  PackedBlock b{};
  const Precision p = Precision(precision);
  b.in_proj = layer(p, layers, layer_sizes, 0);
  b.x_proj = layer(p, layers, layer_sizes, 1);
  b.out_proj = layer(p, layers, layer_sizes, 2);
  if (layers.size() > 3) {
    b.fc1 = layer(p, layers, layer_sizes, 3);
    b.fc2 = layer(p, layers, layer_sizes, 4);
    b.eps2 = eps.at(2);
  }
  b.eps1 = eps.at(0);
  b.eps_out = eps.at(1);
  b.x = floats(in, 0);
  b.y = floats(in, 1);
  b.conv_weight = floats(in, 2);
  b.conv_bias = floats(in, 3);
  b.scan = image_scan(int(Storage::kFloat32), threads, routes, sizes, in, 2);  // the parameters follow the convolution
  b.threads = threads;
  const Products& products = products_for(isa);
  const Kernels& kernels = kernels_for(scan_isa);
  nb::gil_scoped_release release;
  products.block(b, kernels.image_forward);
}

}  // namespace

void bind_products(nb::module_& m) {
  m.def("product_sets", &product_sets, "Instruction sets this processor runs in frozen layers, the best first.");
  m.def(
      "packed_bytes",
      [](const std::string& isa, int precision, int64_t inputs, int64_t outputs) {
        return products_for(isa).packed_bytes(Precision(precision), inputs, outputs);
      },
      nb::arg("isa"), nb::arg("precision"), nb::arg("inputs"), nb::arg("outputs"));
  m.def(
      "pack",
      [](const std::string& isa, int precision, int64_t inputs, int64_t outputs, const Addresses& in) {
        const Products& products = products_for(isa);
        nb::gil_scoped_release release;
        products.pack(Precision(precision), inputs, outputs, floats(in, 0), floats(in, 1), pointer(in, 2));
      },
      nb::arg("isa"), nb::arg("precision"), nb::arg("inputs"), nb::arg("outputs"), nb::arg("addresses"));
  m.def("packed_linear", &linear, nb::arg("isa"), nb::arg("precision"), nb::arg("threads"), nb::arg("sizes"),
        nb::arg("addresses"), nb::arg("eps"), nb::arg("gelu"));
  m.def("packed_convolution", &convolution, nb::arg("isa"), nb::arg("precision"), nb::arg("threads"), nb::arg("sizes"),
        nb::arg("addresses"), nb::arg("eps"), nb::arg("gelu"));
  m.def("packed_block", &block, nb::arg("isa"), nb::arg("scan_isa"), nb::arg("precision"), nb::arg("threads"),
        nb::arg("routes"), nb::arg("sizes"), nb::arg("layers"), nb::arg("layer_sizes"), nb::arg("addresses"),
        nb::arg("eps"));
}

}  // namespace vmamba
