// exp, softplus and its derivative on vectors, to about one unit in the last place of float32.
//
// Polynomials: minimax fits (Lawson's weighting) on the reduced intervals, in forms that keep the leading terms exact,
// so that a decay close to one keeps its distance from one. Each function takes an array of vectors and walks through
// its steps for all of them together: their chains of multiply-adds hide each other's latency.
#pragma once

#include <math.h>

#include "simd.hpp"

namespace {

constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, which then sits in the low bits

// v * 2^n, for n as left by adding kRound and a result that is normal.
VMAMBA_INLINE f32v scale_by_power(f32v v, f32v rounded) { return (f32v)((i32v)v + (i32v)((u32v)rounded << 23)); }

// 2^t; below 2^-125 it stays there, above 2^128 it is infinite.
template <int M>
VMAMBA_INLINE void exp2_each(f32v (&t)[M]) {
  f32v rounded[M], p[M];
  for (int j = 0; j < M; ++j) t[j] = at_most(splat<f32v>(128.0f), at_least(splat<f32v>(-125.0f), t[j]));
  for (int j = 0; j < M; ++j) rounded[j] = t[j] + kRound;
  for (int j = 0; j < M; ++j) t[j] -= rounded[j] - kRound;
  for (int j = 0; j < M; ++j) p[j] = fma(t[j], splat<f32v>(0x1.421434p-13f), splat<f32v>(0x1.5f3b62p-10f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], t[j], splat<f32v>(0x1.3b2d24p-7f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], t[j], splat<f32v>(0x1.c6aef0p-5f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], t[j], splat<f32v>(0x1.ebfbdcp-3f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], t[j], splat<f32v>(0x1.62e430p-1f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], t[j], splat<f32v>(1.0f));
  for (int j = 0; j < M; ++j) t[j] = scale_by_power(p[j], rounded[j]);
}

// z → e^-|z|, flat below e^-86.
template <int M>
VMAMBA_INLINE void exp_minus_abs(f32v (&z)[M]) {
  f32v rounded[M], p[M];
  for (int j = 0; j < M; ++j) z[j] = at_least(splat<f32v>(-86.0f), (f32v)((u32v)z[j] | 0x80000000u));
  for (int j = 0; j < M; ++j) rounded[j] = fma(z[j], splat<f32v>(0x1.715476p0f), splat<f32v>(kRound));
  for (int j = 0; j < M; ++j) {
    const f32v power = rounded[j] - kRound;
    if constexpr (kFused) {
      z[j] = fma(power, splat<f32v>(-0x1.62e430p-1f), z[j]);
    } else {  // log 2 in two parts, of which the first is short enough for an exact product
      z[j] = (z[j] - power * 0x1.62e4p-1f) - power * 0x1.7f7d1cp-20f;
    }
  }
  for (int j = 0; j < M; ++j) p[j] = fma(z[j], splat<f32v>(0x1.6a24a2p-10f), splat<f32v>(0x1.123a7ep-7f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], z[j], splat<f32v>(0x1.5558f4p-5f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], z[j], splat<f32v>(0x1.555490p-3f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], z[j], splat<f32v>(0x1.fffffcp-2f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], z[j], splat<f32v>(1.0f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], z[j], splat<f32v>(1.0f));
  for (int j = 0; j < M; ++j) z[j] = scale_by_power(p[j], rounded[j]);
}

// z → max(z, 0) + log(1 + u) with u = e^-|z|, which is softplus(z).
template <int M>
VMAMBA_INLINE void softplus_from(f32v (&z)[M], const f32v (&u)[M]) {
  f32v p[M];
  for (int j = 0; j < M; ++j) z[j] = at_least(splat<f32v>(0.0f), z[j]);
  for (int j = 0; j < M; ++j) p[j] = fma(u[j], splat<f32v>(0x1.56ee08p-8f), splat<f32v>(-0x1.e369eep-6f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], u[j], splat<f32v>(0x1.4069dap-4f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], u[j], splat<f32v>(-0x1.17d2c2p-3f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], u[j], splat<f32v>(0x1.874a80p-3f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], u[j], splat<f32v>(-0x1.fcc8c6p-3f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], u[j], splat<f32v>(0x1.553004p-2f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], u[j], splat<f32v>(-0x1.fffeacp-2f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], u[j], splat<f32v>(0x1.fffffep-1f));
  for (int j = 0; j < M; ++j) z[j] = fma(p[j], u[j], z[j]);
}

// float64 serves checks, not speed: lane by lane through the C library.
template <class F>
VMAMBA_INLINE f64v each_lane(f64v v, const F& function) {
  double lanes[kLanes<double>];
  store(lanes, v);
  for (double& lane : lanes) lane = function(lane);
  return load(lanes);
}
template <int M>
VMAMBA_INLINE void exp2_each(f64v (&t)[M]) {
  for (int j = 0; j < M; ++j) t[j] = each_lane(t[j], [](double v) { return ::exp2(v); });
}
template <int M>
VMAMBA_INLINE void exp_minus_abs(f64v (&z)[M]) {
  for (int j = 0; j < M; ++j) z[j] = each_lane(z[j], [](double v) { return ::exp(-::fabs(v)); });
}
template <int M>
VMAMBA_INLINE void softplus_from(f64v (&z)[M], const f64v (&u)[M]) {
  for (int j = 0; j < M; ++j)
    z[j] = at_least(splat<f64v>(0.0), z[j]) + each_lane(u[j], [](double v) { return ::log1p(v); });
}

// Δ = softplus(z), in place.
template <int M, class V>
VMAMBA_INLINE void softplus(V (&z)[M]) {
  V u[M];
  for (int j = 0; j < M; ++j) u[j] = z[j];
  exp_minus_abs(u);
  softplus_from(z, u);
}

// x / (1 + e^-x), in place.
template <int M>
VMAMBA_INLINE void silu(f32v (&x)[M]) {
  f32v u[M];
  for (int j = 0; j < M; ++j) u[j] = x[j];
  exp_minus_abs(u);
  for (int j = 0; j < M; ++j) x[j] = x[j] * ((x[j] < 0 ? u[j] : splat<f32v>(1.0f)) / (1 + u[j]));
}

// Δ = softplus(z), in place, and its derivative 1 / (1 + e^-z).
template <int M, class V>
VMAMBA_INLINE void softplus_with_slope(V (&z)[M], V (&slope)[M]) {
  V u[M];
  for (int j = 0; j < M; ++j) u[j] = z[j];
  exp_minus_abs(u);
  for (int j = 0; j < M; ++j) slope[j] = (z[j] < 0 ? u[j] : splat<V>(1)) / (1 + u[j]);
  softplus_from(z, u);
}

}  // namespace
