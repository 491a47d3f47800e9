// A block of the model without a stop: five products, the convolution and the scan.
#pragma once

#include "depthwise.hpp"
#include "product_rows.hpp"

namespace {

using vmamba::PackedBlock;

// Images that go through a block together: as many as stay in the cache between its steps.
inline int64_t images_at_once(const ImageScan& s) {
  constexpr int64_t bytes = 2 * 1024 * 1024;
  const int64_t of_image = s.tokens() * s.channels * int64_t(sizeof(float));
  const int64_t images = smaller(s.batch, bytes / (of_image < 1 ? 1 : of_image));
  return images < 1 ? 1 : images;
}

template <class Kind>
void frozen_block(const PackedBlock& b, void (*scan)(const ImageScan&, void* y)) {
  const int64_t together = images_at_once(b.scan), tokens = b.scan.tokens(), dim = b.in_proj.inputs;
  const int64_t elements = together * tokens * b.scan.channels;
  const vmamba::Memory memory((2 * elements + together * tokens * b.scan.row_stride()) * int64_t(sizeof(float)));
  float *first = memory.as<float>(), *second = first + elements, *dbc = second + elements;
  for (int64_t image = 0; image < b.scan.batch; image += together) {
    ImageScan s = b.scan;
    s.batch = smaller(together, b.scan.batch - image);
    s.x = second;
    s.dbc = dbc;
    const int64_t rows = s.batch * tokens;
    const float* x = b.x + image * tokens * dim;
    float* y = b.y + image * tokens * dim;
    linear<Kind>({b.in_proj, x, rows, b.eps1, nullptr, first, false, b.threads});
    depthwise_silu({first, b.conv_weight, b.conv_bias, second, s.batch, s.height, s.width, s.channels, b.threads});
    linear<Kind>({b.x_proj, second, rows, -1, nullptr, dbc, false, b.threads});
    scan(s, first);
    linear<Kind>({b.out_proj, first, rows, b.eps_out, x, y, false, b.threads});
    if (b.fc1.memory) mlp_in_place<Kind>(b.fc1, b.fc2, b.eps2, y, rows, b.threads);
  }
}

}  // namespace
