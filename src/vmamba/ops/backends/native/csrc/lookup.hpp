// Functions of a non-negative number by table: 16 or 32 intervals, and a short polynomial around the middle of each. A
// permutation looks up the coefficients of a vector.
#pragma once

#include "functions.hpp"

namespace {

VMAMBA_INLINE f32v absolute(f32v v) { return (f32v)((u32v)v & 0x7fffffffu); }

#if defined(__AVX512F__)

// Taylor-like coefficients, the constants first. Every interval has its own fit (Lawson's weighting).
template <int Terms, int Size>
using Table = float[Terms][Size];

VMAMBA_INLINE f32v entry(const float (&table)[16], f32v index) {
  return (f32v)_mm512_permutexvar_ps((__m512i)index, (__m512)load(table));
}
VMAMBA_INLINE f32v entry(const float (&table)[32], f32v index) {
  return (f32v)_mm512_permutex2var_ps((__m512)load(table), (__m512i)index, (__m512)load(table + 16));
}

// p = f(|x|), with intervals 1 / rate wide around the multiples of that; flat from where they end. NaN stays NaN.
template <int Terms, int Size, int M>
VMAMBA_INLINE void look_up(const float (&table)[Terms][Size], float rate, const f32v (&x)[M], f32v (&p)[M]) {
  f32v a[M], index[M];
  for (int j = 0; j < M; ++j) a[j] = at_most(splat<f32v>((Size - 0.55f) / rate), absolute(x[j]));
  for (int j = 0; j < M; ++j) index[j] = fma(a[j], splat<f32v>(rate), splat<f32v>(kRound));
  for (int j = 0; j < M; ++j) a[j] = fma(index[j] - kRound, splat<f32v>(-1 / rate), a[j]);
  for (int j = 0; j < M; ++j) p[j] = entry(table[Terms - 1], index[j]);
  for (int i = Terms - 2; i >= 0; --i)
    for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], entry(table[i], index[j]));
}

#endif

}  // namespace
