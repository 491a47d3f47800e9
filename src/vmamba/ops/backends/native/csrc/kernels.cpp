// The kernels of one instruction set. The build compiles this file once for each, with VMAMBA_ISA and
// VMAMBA_VECTOR_BYTES set; `dispatch.cpp` knows which of them the processor runs.
#include "bias_gelu.hpp"
#include "depthwise.hpp"
#include "image_backward.hpp"
#include "image_forward.hpp"
#include "sequence.hpp"

namespace vmamba {
namespace {

// Calls run(T, S) with zeros of the accumulation and the storage type.
template <class Run>
void for_storage(Storage storage, const Run& run) {
  switch (storage) {
    case Storage::kFloat32:
      return run(float{}, float{});
    case Storage::kFloat64:
      return run(double{}, double{});
    case Storage::kBFloat16:
      return run(float{}, bfloat16{});
    case Storage::kFloat16:
      return run(float{}, float16{});
  }
}

void image_forward_any(const ImageScan& s, void* y) {
  for_storage(s.storage, [&](auto t, auto stored) {
    using T = decltype(t);
    image_forward<T, decltype(stored)>(s, static_cast<T*>(y));
  });
}

void image_backward_any(const ImageScan& s, const ImageGradients& g) {
  for_storage(s.storage, [&](auto t, auto stored) { image_backward<decltype(t), decltype(stored)>(s, g); });
}

void sequence_forward_any(const SequenceScan& s, void* y, void* last) {
  for_storage(s.storage, [&](auto t, auto stored) {
    using T = decltype(t);
    sequence_forward<T, decltype(stored)>(s, static_cast<T*>(y), static_cast<T*>(last));
  });
}

void sequence_backward_any(const SequenceScan& s, const SequenceGradients& g) {
  for_storage(s.storage, [&](auto t, auto stored) { sequence_backward<decltype(t), decltype(stored)>(s, g); });
}

}  // namespace

extern const Kernels VMAMBA_ISA;
const Kernels VMAMBA_ISA = {image_forward_any,     image_backward_any,    sequence_forward_any,
                            sequence_backward_any, depthwise_silu<float>, bias_gelu};

}  // namespace vmamba
