// The depthwise 3×3 convolution before the scan, and SiLU.
#pragma once

#include "arguments.hpp"
#include "parallel.hpp"
#include "product_kinds.hpp"
#include "rough.hpp"

namespace {

using vmamba::DepthwiseSilu;

// One row of the result and M vectors of channels from channel `at` on, of which `valid` exist.
template <int M, class S>
VMAMBA_INLINE void depthwise_row(const DepthwiseSilu& c, S* y, int64_t image, int64_t row, int64_t at, int64_t valid) {
  constexpr int lanes = kLanes<float>;
  f32v weight[9][M], bias[M];
  for (int i = 0; i < 9; ++i) load_row<float>(weight[i], c.weight + i * c.channels + at, valid);
  load_row<float>(bias, c.bias + at, valid);
  const int64_t line = c.width * c.channels;
  const int64_t first = (image * c.height + row) * line + at;
  const bool above = row > 0, below = row + 1 < c.height;
  for (int64_t x = 0; x < c.width; ++x) {
    const float* pixel = c.x + first + x * c.channels;
    f32v sum[M];
    for (int j = 0; j < M; ++j) sum[j] = bias[j];
    if (above && below && x > 0 && x + 1 < c.width && valid >= M * lanes) {
      for (int i = 0; i < 3; ++i)
        for (int k = 0; k < 3; ++k)
          for (int j = 0; j < M; ++j)
            sum[j] = fma(load(pixel + (i - 1) * line + (k - 1) * c.channels + j * lanes), weight[3 * i + k][j], sum[j]);
    } else {
      for (int i = above ? 0 : 1; i < (below ? 3 : 2); ++i)
        for (int k = x > 0 ? 0 : 1; k < (x + 1 < c.width ? 3 : 2); ++k) {
          f32v tap[M];
          load_row<float>(tap, pixel + (i - 1) * line + (k - 1) * c.channels, valid);
          for (int j = 0; j < M; ++j) sum[j] = fma(tap[j], weight[3 * i + k][j], sum[j]);
        }
    }
    if constexpr (std::is_same<S, float>::value)
      silu(sum);
    else
      rough_silu(sum);
    for (int j = 0; j < M; ++j) store_columns(y + first + x * c.channels + j * lanes, sum[j], valid - j * lanes);
  }
}

template <class S>
void depthwise_silu(const DepthwiseSilu& c, S* y) {
  vmamba::for_each(c.threads, c.batch * c.height, c.width * c.channels, 0, [&](int64_t index, void*) {
    const int64_t image = index / c.height, row = index % c.height;
    int64_t at = 0;
    if constexpr (kVectorBytes == 64)
      for (; at + 2 * kLanes<float> <= c.channels; at += 2 * kLanes<float>)
        depthwise_row<2>(c, y, image, row, at, c.channels - at);
    for (; at < c.channels; at += kLanes<float>) depthwise_row<1>(c, y, image, row, at, c.channels - at);
  });
}

}  // namespace
