// The kernels of one instruction set. The build compiles this file once for each, with VMAMBA_ISA and
// VMAMBA_VECTOR_BYTES set; `dispatch.cpp` picks one when the module is imported.
#include "image_backward.hpp"
#include "image_forward.hpp"

namespace vmamba {
namespace {

void image_forward_any(const ImageScan& s, void* y) {
  switch (s.storage) {
    case Storage::kFloat32:
      return image_forward<float, float>(s, static_cast<float*>(y));
    case Storage::kFloat64:
      return image_forward<double, double>(s, static_cast<double*>(y));
    case Storage::kBFloat16:
      return image_forward<float, bfloat16>(s, static_cast<float*>(y));
    case Storage::kFloat16:
      return image_forward<float, float16>(s, static_cast<float*>(y));
  }
}

void image_backward_any(const ImageScan& s, const ImageGradients& g) {
  switch (s.storage) {
    case Storage::kFloat32:
      return image_backward<float, float>(s, g);
    case Storage::kFloat64:
      return image_backward<double, double>(s, g);
    case Storage::kBFloat16:
      return image_backward<float, bfloat16>(s, g);
    case Storage::kFloat16:
      return image_backward<float, float16>(s, g);
  }
}

}  // namespace

extern const Kernels VMAMBA_ISA;
const Kernels VMAMBA_ISA = {image_forward_any, image_backward_any, nullptr, nullptr};

}  // namespace vmamba
