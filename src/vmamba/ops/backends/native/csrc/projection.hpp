// Δ before softplus of a tile of tokens, and where their b and c are.
#pragma once

#include "matmul.hpp"
#include "parameters.hpp"

namespace {

#if defined(__AVX512F__)

#define VMAMBA_PAIRS __attribute__((target("avx512bf16")))

// M rows of pairs of bfloat16 times V vectors of columns.
template <int M, int V>
VMAMBA_PAIRS VMAMBA_INLINE void multiply_pairs(const bfloat16* const* a, const uint32_t* b, int64_t b_stride,
                                               const float* init, int64_t pairs, float* c, int64_t c_stride) {
  constexpr int lanes = kLanes<float>;
  __m512 sum[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) sum[m][v] = _mm512_loadu_ps(init + v * lanes);
  for (int64_t k = 0; k < pairs; ++k) {
    __m512bh column[V];
    for (int v = 0; v < V; ++v) column[v] = (__m512bh)_mm512_loadu_ps(b + k * b_stride + v * lanes);
    for (int m = 0; m < M; ++m) {
      int pair;
      memcpy(&pair, a[m] + 2 * k, sizeof pair);
      for (int v = 0; v < V; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], (__m512bh)_mm512_set1_epi32(pair), column[v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + m * c_stride + v * lanes, sum[m][v]);
}

template <int V>
VMAMBA_PAIRS void multiply_pairs_of_rows(const bfloat16* const* a, int64_t rows, const uint32_t* b, int64_t width,
                                         const float* init, int64_t pairs, float* c) {
  constexpr int M = V == 1 || V == 3 ? 8 : 6;
  int64_t m = 0;
  for (; m + M <= rows; m += M) multiply_pairs<M, V>(a + m, b, width, init, pairs, c + m * width, width);
  for (; m + 2 <= rows; m += 2) multiply_pairs<2, V>(a + m, b, width, init, pairs, c + m * width, width);
  for (; m < rows; ++m) multiply_pairs<1, V>(a + m, b, width, init, pairs, c + m * width, width);
}

#endif

// The layout of the parameters for a forward pass of storage type S.
template <class S>
Layout forward_layout() {
#if defined(__AVX512F__)
  static const bool has_pairs = __builtin_cpu_supports("avx512bf16");
  if (std::is_same<S, bfloat16>::value && has_pairs) return Layout::kForwardInPairs;
#endif
  return Layout::kForward;
}

// Of `count` tokens of route k: Δ before softplus, (count, w), and pointers to b and c. `buffer` has kTile rows of
// row_buffer_stride.
template <class T, class S>
void project_tile(const ImageScan& s, const S* dbc, const int64_t* tokens, int64_t count, const BlockParameters<T>& p,
                  [[maybe_unused]] Layout layout, int64_t width, T* buffer, T* step, const T** state_rows) {
#if defined(__AVX512F__)
  if constexpr (std::is_same<S, bfloat16>::value) {
    if (layout == Layout::kForwardInPairs) {
      const bfloat16* rows[kTile];
      for (int64_t t = 0; t < count; ++t) rows[t] = dbc + tokens[t] * s.row_stride();
      tile_rows<T>(dbc + s.rank, s.row_stride(), 2 * s.states, tokens, count, buffer, state_rows);
      return for_groups<T>(width, [&](auto group, int64_t at) {
        constexpr int V = decltype(group)::vectors;
        multiply_pairs_of_rows<V>(rows, count, p.pairs + at, width, p.bias + at, ceil_div(s.rank, 2), step + at);
      });
    }
  }
#endif
  const T* rows[kTile];
  tile_rows<T>(dbc, s.row_stride(), s.row(), tokens, count, buffer, rows);
  for (int64_t t = 0; t < count; ++t) state_rows[t] = rows[t] + s.rank;
  run(Product<T>{step, width, rows, p.weight, width, p.bias, s.rank}, count, width);
}

}  // namespace
