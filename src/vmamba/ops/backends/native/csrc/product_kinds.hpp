// The three precisions of a product: how rows and weights become words of 32 bits, and what an instruction makes of
// two vectors of words.
//
// A word holds one float32, two bfloat16 or four bytes of neighbouring inputs. A row is a sequence of words; weights
// are panels of columns, word after word, so that one loop serves all kinds (product_tile.hpp).
#pragma once

#include "tiles.hpp"

namespace {

typedef uint8_t u8v __attribute__((vector_size(kVectorBytes / 4)));

// To the nearest, ties to even; NaN stays NaN.
VMAMBA_INLINE u16v narrow(f32v v) {
#if defined(__AVX512BF16__)
  return (u16v)_mm512_cvtneps_pbh((__m512)v);
#else
  const u32v bits = (u32v)v;
  const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32v nan = (u32v)((bits & 0x7fffffffu) > 0x7f800000u);
  return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), u16v);
#endif
}

VMAMBA_INLINE void store_as(float* to, f32v v) { store(to, v); }
VMAMBA_INLINE void store_as(bfloat16* to, f32v v) {
  const u16v bits = narrow(v);
  memcpy(to, &bits, sizeof bits);
}

// The first `valid` lanes only.
template <class S>
VMAMBA_INLINE void store_columns(S* to, f32v v, int64_t valid) {
  if (valid >= kLanes<float>) return store_as(to, v);
  S lanes[kLanes<float>];
  store_as(lanes, v);
  for (int64_t i = 0; i < valid; ++i) to[i] = lanes[i];
}

// A row of bytes q stands for scale · q + start.
struct RowScale {
  float scale = 1, start = 0;
};

// Calls body(v, at) for every vector of a row; the lanes that the last one lacks are zeros.
template <class X, class Body>
VMAMBA_INLINE void for_row(const X* row, int64_t inputs, const Body& body) {
  int64_t at = 0;
  for (; at + kLanes<float> <= inputs; at += kLanes<float>) body(load_as<float>(row + at), at);
  if (at < inputs) body(load_some<float>(row + at, int(inputs - at)), at);
}

struct Float32 {
  using Sum = f32v;
  using Stored = float;
  static constexpr int kPerWord = 1;
  using Between = float;  // of the activations inside a block
  static VMAMBA_INLINE Sum dot(u32v a, u32v b, Sum sum) { return fma((f32v)a, (f32v)b, sum); }

  template <class X>
  static RowScale convert(const X* row, float mean, float factor, int64_t inputs, uint32_t* words) {
    float* to = reinterpret_cast<float*>(words);
    for_row(row, inputs, [=](f32v v, int64_t at) { store(to + at, (v - mean) * factor); });
    return {};
  }
  static uint32_t word(const float* weights, float) {
    uint32_t bits;
    memcpy(&bits, weights, sizeof bits);
    return bits;
  }
};

struct BFloat16 {
  using Sum = f32v;
  using Stored = bfloat16;
  using Between = bfloat16;
  static constexpr int kPerWord = 2;
  static VMAMBA_INLINE Sum dot(u32v a, u32v b, Sum sum) {
#if defined(__AVX512BF16__)
    return (f32v)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum = fma((f32v)(a << 16), (f32v)(b << 16), sum);
    return fma((f32v)(a & 0xffff0000u), (f32v)(b & 0xffff0000u), sum);
#endif
  }

  template <class X>
  static RowScale convert(const X* row, float mean, float factor, int64_t inputs, uint32_t* words) {
    bfloat16* to = reinterpret_cast<bfloat16*>(words);
    if constexpr (std::is_same<X, bfloat16>::value)  // inside a block, where mean and factor are 0 and 1
      memcpy(to, row, size_t(inputs) * sizeof *to);
    else
      for_row(row, inputs, [=](f32v v, int64_t at) { store_as(to + at, (v - mean) * factor); });
    if (inputs % 2) to[inputs].bits = 0;
    return {};
  }
  static uint32_t word(const float* weights, float) {
    f32v v = {};
    v[0] = weights[0];
    v[1] = weights[1];
    const u16v bits = narrow(v);
    return uint32_t(bits[0]) | uint32_t(bits[1]) << 16;
  }
};

// Weights symmetric by column, rows asymmetric by row: Σ x w ≈ scale · scale_w · Σ q q_w + start · scale_w · Σ q_w.
struct Int8 {
  using Sum = i32v;
  using Stored = float;
  using Between = bfloat16;
  static constexpr int kPerWord = 4;
  static VMAMBA_INLINE Sum dot(u32v a, u32v b, Sum sum) {
#if defined(__AVX512VNNI__)
    return (i32v)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
    for (int byte = 0; byte < 4; ++byte)
      sum += (i32v)((a >> (8 * byte)) & 0xffu) * ((i32v)(b << (24 - 8 * byte)) >> 24);
    return sum;
#endif
  }

  template <class X>
  static RowScale convert(const X* row, float mean, float factor, int64_t inputs, uint32_t* words) {
    f32v low = splat<f32v>(load_some<float>(row, 1)[0]), high = low;
    int64_t at = 0;
    for (; at + kLanes<float> <= inputs; at += kLanes<float>) {
      const f32v v = load_as<float>(row + at);
      low = low < v ? low : v;
      high = high > v ? high : v;
    }
    float lowest = low[0], highest = high[0];
    for (int i = 1; i < kLanes<float>; ++i) {
      lowest = low[i] < lowest ? low[i] : lowest;
      highest = high[i] > highest ? high[i] : highest;
    }
    const f32v last = load_some<float>(row + at, int(inputs - at));
    for (int i = 0; i < inputs - at; ++i) {
      lowest = last[i] < lowest ? last[i] : lowest;
      highest = last[i] > highest ? last[i] : highest;
    }
    const float range = highest - lowest, steps = range > 0 ? 255 / range : 0.0f;
    uint8_t* to = reinterpret_cast<uint8_t*>(words);
    for_row(row, inputs, [=](f32v v, int64_t start) {
      const u32v rounded = (u32v)((v - lowest) * steps + 0x1.8p23f);  // the low bits are the integer
      const u8v bytes = __builtin_convertvector(rounded & 0xffu, u8v);
      memcpy(to + start, &bytes, sizeof bytes);
    });
    for (int64_t i = inputs; i % 4; ++i) to[i] = 0;
    return {range / 255 * factor, (lowest - mean) * factor};
  }
  static uint32_t word(const float* weights, float steps) {
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word |= uint32_t(uint8_t(int8_t(__builtin_rintf(weights[i] * steps)))) << (8 * i);
    return word;
  }
};

}  // namespace
