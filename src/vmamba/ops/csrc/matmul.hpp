// The small matrix product inside a tile: C[t][j] = init[j] + Σ_k a_t[k] B[k][j], rows of A given by pointers.
#pragma once

#include "simd.hpp"

namespace {

// M rows and V vectors of C held in registers. Every element is summed over k in ascending order from its initial
// value, whatever M and V: the result does not depend on how the work is blocked.
template <class T, int M, int V>
VMAMBA_INLINE void product_block(
    T* c, int64_t c_stride, const T* const* a, const T* b, int64_t b_stride, const T* init, int64_t depth) {
  Vec<T> sum[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) sum[m][v] = load(init + v * kLanes<T>);
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + k * b_stride + v * kLanes<T>);
    for (int m = 0; m < M; ++m) {
      const Vec<T> factor = splat<Vec<T>>(a[m][k]);
      for (int v = 0; v < V; ++v) sum[m][v] = fma(factor, row[v], sum[m][v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(c + m * c_stride + v * kLanes<T>, sum[m][v]);
}

template <class T, int M, int V>
inline void product_columns(T* c, int64_t c_stride, const T* const* a, int64_t rows, const T* b, int64_t b_stride,
                            const T* init, int64_t depth) {
  int64_t m = 0;
  for (; m + M <= rows; m += M) product_block<T, M, V>(c + m * c_stride, c_stride, a + m, b, b_stride, init, depth);
  for (; m < rows; ++m) product_block<T, 1, V>(c + m * c_stride, c_stride, a + m, b, b_stride, init, depth);
}

// C (rows, vectors · lanes), both strides in elements.
template <class T>
inline void product(T* c, int64_t c_stride, const T* const* a, int64_t rows, const T* b, int64_t b_stride,
                    const T* init, int64_t depth, int vectors) {
  constexpr int lanes = kLanes<T>;
  int v = 0;
#if VMAMBA_VECTOR_BYTES == 64  // thirty-two registers
  for (; v + 4 <= vectors; v += 4)
    product_columns<T, 6, 4>(c + v * lanes, c_stride, a, rows, b + v * lanes, b_stride, init + v * lanes, depth);
  for (; v + 3 <= vectors; v += 3)
    product_columns<T, 8, 3>(c + v * lanes, c_stride, a, rows, b + v * lanes, b_stride, init + v * lanes, depth);
#endif
  for (; v + 2 <= vectors; v += 2)
    product_columns<T, 6, 2>(c + v * lanes, c_stride, a, rows, b + v * lanes, b_stride, init + v * lanes, depth);
  for (; v < vectors; ++v)
    product_columns<T, 8, 1>(c + v * lanes, c_stride, a, rows, b + v * lanes, b_stride, init + v * lanes, depth);
}

}  // namespace
