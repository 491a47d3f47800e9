// Vectors of the width this file is compiled for, loads and stores that convert the storage type.
//
// Written with the vector extensions of GCC and Clang, so one source serves SSE2, AVX2, AVX-512 and NEON. Everything
// that the kernels instantiate lives in an unnamed namespace: the same templates are compiled several times with
// different flags, and the linker must never merge them.
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "arguments.hpp"

#ifndef VMAMBA_VECTOR_BYTES
#error "VMAMBA_VECTOR_BYTES is set by the build"
#endif

namespace {

using vmamba::bfloat16;
using vmamba::float16;

constexpr int kVectorBytes = VMAMBA_VECTOR_BYTES;

typedef float f32v __attribute__((vector_size(kVectorBytes)));
typedef double f64v __attribute__((vector_size(kVectorBytes)));
typedef int32_t i32v __attribute__((vector_size(kVectorBytes)));
typedef uint32_t u32v __attribute__((vector_size(kVectorBytes)));
typedef uint16_t u16v __attribute__((vector_size(kVectorBytes / 2)));

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = f32v;
};
template <>
struct VectorOf<double> {
  using type = f64v;
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

#define VMAMBA_INLINE inline __attribute__((always_inline))
#define VMAMBA_NOINLINE __attribute__((noinline))

template <class V, class T>
VMAMBA_INLINE V splat(T value) {
  using Element = std::remove_reference_t<decltype(V{}[0])>;
  return Element(value) - V{};  // x - 0 is x for every x, so only the broadcast is left
}

#if defined(__AVX512F__) || defined(__FMA__) || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

// a * b + c, rounded once where the instruction set can. The compiler is told not to contract anything else: a choice
// of its own could differ between two instances of a kernel, and results would depend on how work is divided.
template <class V>
VMAMBA_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  if constexpr (sizeof(a[0]) == 4) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  if constexpr (sizeof(a[0]) == 4) return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// max and min that hand a NaN in `x` on, which is what the instructions of x86 do; compilers make two of the general
// form.
template <class V>
VMAMBA_INLINE V at_least(V bound, V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(x[0]) == 4) return (V)_mm512_max_ps((__m512)bound, (__m512)x);
#elif defined(__FMA__)
  if constexpr (sizeof(x[0]) == 4) return (V)_mm256_max_ps((__m256)bound, (__m256)x);
#endif
  return bound > x ? bound : x;
}
template <class V>
VMAMBA_INLINE V at_most(V bound, V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(x[0]) == 4) return (V)_mm512_min_ps((__m512)bound, (__m512)x);
#elif defined(__FMA__)
  if constexpr (sizeof(x[0]) == 4) return (V)_mm256_min_ps((__m256)bound, (__m256)x);
#endif
  return bound < x ? bound : x;
}

VMAMBA_INLINE f32v widen(u16v bits, bfloat16) { return (f32v)(__builtin_convertvector(bits, u32v) << 16); }

VMAMBA_INLINE f32v widen(u16v bits, float16) {
  // Moving exponent and mantissa into place and scaling by 2^112 is exact, for subnormals too; an all-ones exponent
  // (inf, NaN) is put right afterwards.
  const u32v word = __builtin_convertvector(bits, u32v);
  const u32v magnitude = (word & 0x7fffu) << 13;
  const f32v scaled = (f32v)magnitude * 0x1p112f;
  const u32v special = (u32v)(i32v)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;
  return (f32v)((u32v)scaled | special | ((word & 0x8000u) << 16));
}

// Vector loads of accumulation type T from storage type S.
template <class T>
VMAMBA_INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class T, class S>
VMAMBA_INLINE Vec<T> load_as(const S* from) {
  if constexpr (sizeof(S) == 2) {
    u16v bits;
    memcpy(&bits, from, sizeof bits);
    return widen(bits, S{});
  } else {
    return load(from);
  }
}

template <class T>
VMAMBA_INLINE void store(T* to, Vec<T> v) {
  memcpy(to, &v, sizeof v);
}

#if defined(__AVX512F__)
VMAMBA_INLINE __mmask16 first_lanes(int valid) { return __mmask16(valid > 0 ? (1u << valid) - 1 : 0); }
#endif

// The first `valid` lanes only; the rest read as zero and are never written.
template <class T, class S>
VMAMBA_INLINE Vec<T> load_some(const S* from, int valid) {
  if (valid >= kLanes<T>) return load_as<T>(from);
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 2 && sizeof(T) == 4)
    return widen((u16v)_mm256_maskz_loadu_epi16(first_lanes(valid), from), S{});
  else if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_maskz_loadu_ps(first_lanes(valid), from);
#endif
  S lanes[kLanes<T>] = {};
  for (int i = 0; i < valid; ++i) lanes[i] = from[i];
  return load_as<T>(lanes);
}

template <class T>
VMAMBA_INLINE void store_some(T* to, Vec<T> v, int valid) {
  if (valid >= kLanes<T>) return store(to, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(to, first_lanes(valid), (__m512)v);
#endif
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int i = 0; i < valid; ++i) to[i] = lanes[i];
}

// Sum over the lanes by halving, the same tree on every machine of this width.
template <class T>
VMAMBA_INLINE T sum_lanes(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

}  // namespace
