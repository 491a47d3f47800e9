// A block of the model without a stop: five products, the convolution and the scan.
#pragma once

#include "depthwise.hpp"
#include "product_rows.hpp"

namespace {

using vmamba::PackedBlock;

// Images that go through a block together where all threads work on each of them: as many as stay in the cache between
// its steps.
inline int64_t images_at_once(const ImageScan& s) {
  constexpr int64_t bytes = 2 * 1024 * 1024;
  const int64_t of_image = s.tokens() * s.channels * int64_t(sizeof(float));
  const int64_t images = smaller(s.batch, bytes / (of_image < 1 ? 1 : of_image));
  return images < 1 ? 1 : images;
}

// Floats between the steps of a block.
inline int64_t block_floats(const ImageScan& s, int64_t images) {
  return images * s.tokens() * (2 * s.channels + s.row_stride());
}

// `count` images from image `first` on.
template <class Kind>
void images_through_block(const PackedBlock& b, void (*scan)(const ImageScan&, void* y), int64_t first, int64_t count,
                          int threads, float* memory) {
  const int64_t tokens = b.scan.tokens(), dim = b.in_proj.inputs, rows = count * tokens;
  const float* x = b.x + first * tokens * dim;
  float *y = b.y + first * tokens * dim, *even = memory, *odd = even + rows * b.scan.channels;
  float* dbc = odd + rows * b.scan.channels;
  ImageScan s = b.scan;
  s.batch = count;
  s.threads = threads;
  s.x = odd;
  s.dbc = dbc;
  linear<Kind>({b.in_proj, x, rows, b.eps1, nullptr, even, false, threads});
  depthwise_silu({even, b.conv_weight, b.conv_bias, odd, count, s.height, s.width, s.channels, threads});
  linear<Kind>({b.x_proj, odd, rows, -1, nullptr, dbc, false, threads});
  scan(s, even);
  linear<Kind>({b.out_proj, even, rows, b.eps_out, x, y, false, threads});
  if (b.fc1.memory) mlp_in_place<Kind>(b.fc1, b.fc2, b.eps2, y, rows, threads);
}

// Threads take images of their own, which need no barriers and stay in their caches; the rest of a batch is shared.
template <class Kind>
void frozen_block(const PackedBlock& b, void (*scan)(const ImageScan&, void* y)) {
  const int64_t own = b.threads > 1 ? b.scan.batch / b.threads : 0;  // images of a thread
  if (own > 0) {
    constexpr int64_t rows = 256;  // that a task should have: every task passes through all weights
    const int64_t parts = smaller(own, 1 + (own * b.scan.tokens() - 1) / rows), images = ceil_div(own, parts);
    const int64_t tasks = ceil_div(own, images) * b.threads;
    vmamba::for_each(b.threads, tasks, images * b.scan.tokens() * b.scan.channels,
                     block_floats(b.scan, images) * int64_t(sizeof(float)), [&](int64_t index, void* memory) {
                       const int64_t first = index * images;
                       const int64_t count = smaller(images, own * b.threads - first);
                       if (count > 0) images_through_block<Kind>(b, scan, first, count, 1, static_cast<float*>(memory));
                     });
  }
  const int64_t together = images_at_once(b.scan);
  for (int64_t first = own * b.threads; first < b.scan.batch; first += together) {
    const int64_t count = smaller(together, b.scan.batch - first);
    const vmamba::Memory memory(block_floats(b.scan, count) * int64_t(sizeof(float)));
    images_through_block<Kind>(b, scan, first, count, b.threads, memory.as<float>());
  }
}

}  // namespace
