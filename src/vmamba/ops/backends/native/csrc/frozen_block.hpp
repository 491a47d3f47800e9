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

// Bytes between the steps of a block.
template <class Kind>
int64_t block_bytes(const ImageScan& s, int64_t images) {
  const int64_t narrow = s.channels + s.row_stride(), size = int64_t(sizeof(typename Kind::Between));
  return images * s.tokens() * (s.channels * int64_t(sizeof(float)) + narrow * size);
}

// `count` images from image `first` on.
template <class Kind>
void images_through_block(const PackedBlock& b, void (*scan)(const ImageScan&, void* y), int64_t first, int64_t count,
                          int threads, void* memory) {
  const int64_t tokens = b.scan.tokens(), dim = b.in_proj.inputs, rows = count * tokens;
  const float* x = b.x + first * tokens * dim;
  using S = typename Kind::Between;
  float *y = b.y + first * tokens * dim, *wide = static_cast<float*>(memory);
  S *activations = reinterpret_cast<S*>(wide + rows * b.scan.channels), *dbc = activations + rows * b.scan.channels;
  ImageScan s = b.scan;
  s.batch = count;
  s.threads = threads;
  s.storage = std::is_same<S, float>::value ? vmamba::Storage::kFloat32 : vmamba::Storage::kBFloat16;
  s.x = activations;
  s.dbc = dbc;
  linear<Kind>(PackedLinear<>{b.in_proj, x, rows, b.eps1, nullptr, wide, false, threads});
  depthwise_silu({wide, b.conv_weight, b.conv_bias, count, s.height, s.width, s.channels, threads}, activations);
  linear<Kind>(PackedLinear<S, S>{b.x_proj, activations, rows, -1, nullptr, dbc, false, threads});
  scan(s, wide);
  linear<Kind>(PackedLinear<>{b.out_proj, wide, rows, b.eps_out, x, y, false, threads});
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
    vmamba::for_each(b.threads, tasks, images * b.scan.tokens() * b.scan.channels, block_bytes<Kind>(b.scan, images),
                     [&](int64_t index, void* memory) {
                       const int64_t first = index * images;
                       const int64_t count = smaller(images, own * b.threads - first);
                       if (count > 0) images_through_block<Kind>(b, scan, first, count, 1, memory);
                     });
  }
  const int64_t together = images_at_once(b.scan);
  for (int64_t first = own * b.threads; first < b.scan.batch; first += together) {
    const int64_t count = smaller(together, b.scan.batch - first);
    const vmamba::Memory memory(block_bytes<Kind>(b.scan, count));
    images_through_block<Kind>(b, scan, first, count, b.threads, memory.as<void>());
  }
}

}  // namespace
