// Products of a few rows with one panel of columns, and what follows each sum.
#pragma once

#include "gelu.hpp"
#include "product_arguments.hpp"
#include "product_kinds.hpp"
#include "rough.hpp"

namespace {

using vmamba::PackedLayer;
using vmamba::Precision;

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 14;  // two vectors of each: 28 of 32 registers
#else
constexpr int kTileRows = 6;
#endif
constexpr int kAhead = 24;  // steps after which a panel's words are wanted; processors look ahead within a page only
constexpr int kPanel = 2 * kLanes<float>;  // columns of a panel; the last may have half as many

// Packed weights: panels of words, then by column the bias, the scale, and the scaled sum of the weights.
struct Panels {
  const uint32_t* words;
  const float *bias, *scale, *sum;
  int64_t inputs, outputs, depth, columns;  // words of a row; outputs rounded up to whole vectors

  template <class Kind>
  static Panels of(const PackedLayer& layer, Kind) {
    Panels p;
    p.inputs = layer.inputs;
    p.outputs = layer.outputs;
    p.depth = ceil_div(layer.inputs, Kind::kPerWord);
    p.columns = round_up(layer.outputs, kLanes<float>);
    p.words = static_cast<const uint32_t*>(layer.memory);
    p.bias = reinterpret_cast<const float*>(p.words + p.depth * p.columns);
    p.scale = p.bias + p.columns;
    p.sum = p.scale + p.columns;
    return p;
  }
  int64_t count() const { return ceil_div(columns, kPanel); }
  int64_t bytes() const { return (depth + 3) * columns * 4; }
};

template <class Kind>
void pack_layer(const PackedLayer& layer, const float* weight, const float* bias) {
  const Panels p = Panels::of(layer, Kind{});
  uint32_t* words = const_cast<uint32_t*>(p.words);
  float *biases = const_cast<float*>(p.bias), *scales = const_cast<float*>(p.scale), *sums = const_cast<float*>(p.sum);
  for (int64_t n = 0; n < p.columns; ++n) {
    const float* row = weight + n * p.inputs;
    const int64_t valid = n < p.outputs ? p.inputs : 0;
    float peak = 0, total = 0;
    for (int64_t i = 0; i < valid; ++i) peak = __builtin_fabsf(row[i]) > peak ? __builtin_fabsf(row[i]) : peak;
    const float steps = peak > 0 ? 127 / peak : 0.0f;
    const int64_t panel = n / kPanel * kPanel, width = smaller(kPanel, p.columns - panel);
    for (int64_t k = 0; k < p.depth; ++k) {
      float some[4] = {};
      for (int i = 0; i < Kind::kPerWord; ++i) {
        const int64_t at = k * Kind::kPerWord + i;
        if (at < valid) some[i] = row[at];
        total += __builtin_rintf(some[i] * steps);
      }
      words[panel * p.depth + k * width + n - panel] = Kind::word(some, steps);
    }
    biases[n] = n < p.outputs && bias ? bias[n] : 0.0f;
    scales[n] = peak / 127;
    sums[n] = total * scales[n];
  }
}

// Memory that what follows a tile's sums will need: while they are made, it comes closer.
struct Wanted {
  const char *y, *residual;
  int64_t y_stride, residual_stride;

  VMAMBA_INLINE void prefetch(int64_t rows) const {
    for (int64_t row = 0; row < rows; ++row)
      for (int at = 0; at < kPanel * int(sizeof(float)); at += 64) {
        __builtin_prefetch(y + row * y_stride + at, 1);
        __builtin_prefetch(residual + row * residual_stride + at);
      }
  }
};

// M rows times V vectors of columns, held in registers.
template <class Kind, int M, int V>
VMAMBA_INLINE void accumulate(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t depth,
                              const Wanted& wanted, typename Kind::Sum (&sum)[M][V]) {
  wanted.prefetch(M);
  for (int64_t k = 0; k < depth; ++k) {
    u32v words[V];
    for (int v = 0; v < V; ++v) {
      memcpy(&words[v], b + (k * V + v) * kLanes<float>, sizeof(u32v));
      __builtin_prefetch(b + ((k + kAhead) * V + v) * kLanes<float>);
    }
    for (int m = 0; m < M; ++m) {
      const u32v row = splat<u32v>(a[m * a_stride + k]);
      for (int v = 0; v < V; ++v) sum[m][v] = Kind::dot(row, words[v], sum[m][v]);
    }
  }
}

// A function of its own, as is whole_tile: inside a larger one, compilers keep some of the sums in memory, which costs
// a tenth.
template <class Kind, int M, int V>
VMAMBA_NOINLINE void sum_tile(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t depth,
                              const Wanted& wanted, typename Kind::Sum* sums) {
  typename Kind::Sum sum[M][V] = {};
  accumulate<Kind, M, V>(a, a_stride, b, depth, wanted, sum);
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) sums[m * V + v] = sum[m][v];
}

template <class Kind, int V>
void sum_rows(int64_t rows, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t depth, const Wanted& wanted,
              typename Kind::Sum* sums) {
#define VMAMBA_ROWS(M)                                                                              \
  case M:                                                                                           \
    if constexpr (M <= kTileRows) return sum_tile<Kind, M, V>(a, a_stride, b, depth, wanted, sums); \
    break;
  switch (rows) {
    VMAMBA_ROWS(1)
    VMAMBA_ROWS(2)
    VMAMBA_ROWS(3)
    VMAMBA_ROWS(4)
    VMAMBA_ROWS(5)
    VMAMBA_ROWS(6)
    VMAMBA_ROWS(7)
    VMAMBA_ROWS(8)
    VMAMBA_ROWS(9)
    VMAMBA_ROWS(10)
    VMAMBA_ROWS(11)
    VMAMBA_ROWS(12)
    VMAMBA_ROWS(13)
    VMAMBA_ROWS(14)
  }
#undef VMAMBA_ROWS
}

// Where the results of a block of rows go.
template <class S>
struct Results {
  S* y;
  int64_t stride;
  const float* residual;  // null for none
  int64_t residual_stride;
  bool gelu;

  Wanted wanted(int64_t column) const {
    const char* results = reinterpret_cast<const char*>(y + column);
    const int64_t bytes = stride * int64_t(sizeof(S));
    if (!residual) return {results, results, bytes, bytes};
    return {results, reinterpret_cast<const char*>(residual + column), bytes, residual_stride * int64_t(sizeof(float))};
  }
};

VMAMBA_INLINE f32v finish(f32v sum, const Panels& p, int64_t column, const RowScale&) {
  return sum + load(p.bias + column);
}
VMAMBA_INLINE f32v finish(i32v sum, const Panels& p, int64_t column, const RowScale& row) {
  const f32v start = fma(splat<f32v>(row.start), load(p.sum + column), load(p.bias + column));
  return fma(__builtin_convertvector(sum, f32v) * row.scale, load(p.scale + column), start);
}

template <class Kind, int V, class S>
VMAMBA_INLINE void finish_row(const typename Kind::Sum* sums, const Panels& p, int64_t column, const RowScale& scale,
                              const Results<S>& results, int64_t m) {
  constexpr int lanes = kLanes<float>;
  f32v y[V];
  for (int v = 0; v < V; ++v) y[v] = finish(sums[v], p, column + v * lanes, scale);
  if (results.gelu) {
    if constexpr (std::is_same<Kind, Float32>::value)
      gelu_each(y);
    else
      rough_gelu(y);
  }
  for (int v = 0; v < V; ++v) {
    const int64_t at = column + v * lanes, valid = p.outputs - at;
    if (results.residual) y[v] += load_some<float>(results.residual + m * results.residual_stride + at, int(valid));
    store_columns(results.y + m * results.stride + at, y[v], valid);
  }
}

template <class Kind, int V, class S>
void finish_tile(const typename Kind::Sum* sums, int64_t rows, const Panels& p, int64_t column, const RowScale* scales,
                 const Results<S>& results) {
  for (int64_t m = 0; m < rows; ++m) finish_row<Kind, V>(sums + m * V, p, column, scales[m], results, m);
}

// The common case: sums go from registers to their places.
template <class Kind, int V, class S>
VMAMBA_NOINLINE void whole_tile(const uint32_t* a, int64_t a_stride, const uint32_t* b, const Panels& p, int64_t column,
                                const RowScale* scales, const Wanted& wanted, const Results<S>& results) {
  typename Kind::Sum sum[kTileRows][V] = {};
  accumulate<Kind, kTileRows, V>(a, a_stride, b, p.depth, wanted, sum);
#pragma GCC unroll 16
  for (int m = 0; m < kTileRows; ++m) finish_row<Kind, V>(sum[m], p, column, scales[m], results, m);
}

// Rows of words times the panels first … end - 1.
template <class Kind, class S>
void multiply(const uint32_t* a, int64_t a_stride, int64_t rows, const RowScale* scales, const Panels& p, int64_t first,
              int64_t end, const Results<S>& results) {
  typename Kind::Sum sums[2 * kTileRows];
  for (int64_t panel = first; panel < end; ++panel) {
    const int64_t column = panel * kPanel;
    const uint32_t* b = p.words + column * p.depth;
    const bool whole = p.columns - column >= kPanel;
    for (int64_t m = 0; m < rows; m += kTileRows) {
      const int64_t some = smaller(kTileRows, rows - m);
      Results<S> to = results;
      to.y += m * to.stride;
      if (to.residual) to.residual += m * to.residual_stride;
      const Wanted wanted = to.wanted(column);
      if (whole && some == kTileRows) {
        whole_tile<Kind, 2>(a + m * a_stride, a_stride, b, p, column, scales + m, wanted, to);
      } else if (whole) {
        sum_rows<Kind, 2>(some, a + m * a_stride, a_stride, b, p.depth, wanted, sums);
        finish_tile<Kind, 2>(sums, some, p, column, scales + m, to);
      } else {
        sum_rows<Kind, 1>(some, a + m * a_stride, a_stride, b, p.depth, wanted, sums);
        finish_tile<Kind, 1>(sums, some, p, column, scales + m, to);
      }
    }
  }
}

}  // namespace
