// GELU of rows plus a bias, in one pass over memory.
#pragma once

#include "arguments.hpp"
#include "gelu.hpp"
#include "parallel.hpp"
#include "product_kinds.hpp"

namespace {

// M vectors of a row from channel `at` on, of which `valid` exist.
template <int M>
VMAMBA_INLINE void bias_gelu_columns(const float* x, const float* bias, float* y, int64_t at, int64_t valid) {
  f32v v[M], b[M];
  load_row<float>(v, x + at, valid);
  load_row<float>(b, bias + at, valid);
  for (int j = 0; j < M; ++j) v[j] += b[j];
  gelu_each(v);
  for (int j = 0; j < M; ++j) store_columns(y + at + j * kLanes<float>, v[j], valid - j * kLanes<float>);
}

inline void bias_gelu(const vmamba::BiasGelu& g, float* y) {
  constexpr int64_t block = 16;  // rows of a task
  constexpr int64_t two = 2 * kLanes<float>;
  vmamba::for_each(g.threads, ceil_div(g.rows, block), block * g.channels, 0, [&](int64_t index, void*) {
    const int64_t end = smaller((index + 1) * block, g.rows);
    for (int64_t row = index * block; row < end; ++row) {
      const float* x = g.x + row * g.channels;
      float* to = y + row * g.channels;
      int64_t at = 0;
      for (; at + two <= g.channels; at += two) bias_gelu_columns<2>(x, g.bias, to, at, two);
      for (; at < g.channels; at += kLanes<float>) bias_gelu_columns<1>(x, g.bias, to, at, g.channels - at);
    }
  });
}

}  // namespace
