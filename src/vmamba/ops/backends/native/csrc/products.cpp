// The kernels of the frozen layers, for one instruction set; compiled once for each, like kernels.cpp.
#include "frozen_block.hpp"

namespace vmamba {
namespace {

// Calls run(Kind) with the kind of a precision.
template <class Run>
auto for_precision(Precision precision, const Run& run) {
  if (precision == Precision::kBFloat16) return run(BFloat16{});
  if (precision == Precision::kInt8) return run(Int8{});
  return run(Float32{});
}

int64_t packed_bytes(Precision precision, int64_t inputs, int64_t outputs) {
  return for_precision(
      precision, [&](auto kind) { return Panels::of(PackedLayer{nullptr, inputs, outputs, precision}, kind).bytes(); });
}

void pack(Precision precision, int64_t inputs, int64_t outputs, const float* weight, const float* bias, void* memory) {
  for_precision(precision, [&](auto kind) {
    pack_layer<decltype(kind)>(PackedLayer{memory, inputs, outputs, precision}, weight, bias);
  });
}

void linear_any(const PackedLinear<>& l) {
  for_precision(l.layer.precision, [&](auto kind) { linear<decltype(kind)>(l); });
}

void convolution_any(const PackedConvolution& c) {
  for_precision(c.layer.precision, [&](auto kind) { convolution<decltype(kind)>(c); });
}

void block_any(const PackedBlock& b, void (*scan)(const ImageScan&, void* y)) {
  for_precision(b.in_proj.precision, [&](auto kind) { frozen_block<decltype(kind)>(b, scan); });
}

}  // namespace

#define VMAMBA_NAME_(isa) products_##isa
#define VMAMBA_NAME(isa) VMAMBA_NAME_(isa)
extern const Products VMAMBA_NAME(VMAMBA_ISA);
const Products VMAMBA_NAME(VMAMBA_ISA) = {packed_bytes, pack, linear_any, convolution_any, block_any};

}  // namespace vmamba
