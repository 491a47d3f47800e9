// The small matrix products inside a tile, blocked for registers.
#pragma once

#include "tiles.hpp"

namespace {

// M rows and V vectors of C held in registers. Every element is summed over k in ascending order from zero or from its
// initial value, whatever M and V: the result does not depend on how the work is blocked. `factor(m, k)` reads A.
template <class T, int M, int V, class Factor>
VMAMBA_INLINE void sum_products(Vec<T> (&sum)[M][V], const Factor& factor, const T* b, int64_t b_stride,
                                int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + k * b_stride + v * kLanes<T>);
    for (int m = 0; m < M; ++m) {
      const Vec<T> a = splat<Vec<T>>(factor(m, k));
      for (int v = 0; v < V; ++v) sum[m][v] = fma(a, row[v], sum[m][v]);
    }
  }
}

// C[t] = init + a_t B, rows of A given by pointers.
template <class T>
struct Product {
  T* c;
  int64_t c_stride;
  const T* const* a;
  const T* b;
  int64_t b_stride;
  const T* init;
  int64_t depth;

  template <int M, int V>
  VMAMBA_INLINE void block(int64_t m0, int64_t at) const {
    Vec<T> sum[M][V];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) sum[m][v] = load(init + at + v * kLanes<T>);
    const T* const* rows = a + m0;
    sum_products<T>(sum, [rows](int m, int64_t k) { return rows[m][k]; }, b + at, b_stride, depth);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) store(c + (m0 + m) * c_stride + at + v * kLanes<T>, sum[m][v]);
  }
};

// C[r] += Σ_t a_t[r] B[t]: the products with the transposed A, added to what is there.
template <class T>
struct TransposedProduct {
  T* c;
  int64_t c_stride;
  const T* const* a;
  const T* b;
  int64_t b_stride;
  int64_t depth;

  template <int M, int V>
  VMAMBA_INLINE void block(int64_t m0, int64_t at) const {
    Vec<T> sum[M][V] = {};
    const T* const* rows = a;
    sum_products<T>(sum, [rows, m0](int m, int64_t k) { return rows[k][m0 + m]; }, b + at, b_stride, depth);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) {
        T* to = c + (m0 + m) * c_stride + at + v * kLanes<T>;
        store(to, load(to) + sum[m][v]);
      }
  }
};

template <int M, int V, class P>
inline void run_columns(const P& product, int64_t rows, int64_t at) {
  int64_t m = 0;
  for (; m + M <= rows; m += M) product.template block<M, V>(m, at);
  if constexpr (M > 3)
    for (; m + 2 <= rows; m += 2) product.template block<2, V>(m, at);
  for (; m < rows; ++m) product.template block<1, V>(m, at);
}

// All of C: `rows` rows of `width` elements.
template <class T, template <class> class P>
inline void run(const P<T>& product, int64_t rows, int64_t width) {
  for_groups<T>(width, [&](auto group, int64_t at) {
    constexpr int V = decltype(group)::vectors;
    constexpr int M = V == 1 || V == 3 ? 8 : 6;  // as many sums as there are registers to hold them
    run_columns<M, V>(product, rows, at);
  });
}

}  // namespace
