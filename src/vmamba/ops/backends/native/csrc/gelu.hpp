// GELU on vectors: x Φ(x) = max(x, 0) - a Φ(-a) with a = |x|, a term that is zero soon.
#pragma once

#include "lookup.hpp"

namespace {

#if defined(__AVX512F__)

// a Φ(-a), to 3e-8.
alignas(64) constexpr Table<5, 32> kGelu = {
    {0.0f,
     0x1.4b2a78p-4f,
     0x1.12547cp-3f,
     0x1.4c30e4p-3f,
     0x1.5c0e5ep-3f,
     0x1.4c765ep-3f,
     0x1.283266p-3f,
     0x1.f22286p-4f,
     0x1.8e12a4p-4f,
     0x1.2f9b16p-4f,
     0x1.bb3bf4p-5f,
     0x1.363dc4p-5f,
     0x1.a103b6p-6f,
     0x1.0d5e8ep-6f,
     0x1.4eb426p-7f,
     0x1.903676p-8f,
     0x1.ccb2d4p-9f,
     0x1.feb626p-10f,
     0x1.10acbap-10f,
     0x1.188614p-11f,
     0x1.161778p-12f,
     0x1.09ad76p-13f,
     0x1.e94418p-15f,
     0x1.b23ec8p-16f,
     0x1.7385c8p-17f,
     0x1.326c2cp-18f,
     0x1.e74baep-20f,
     0x1.758eeap-21f,
     0x1.141912p-22f,
     0x1.898126p-24f,
     0x1.0e605cp-25f,
     0x1.6640c2p-27f},
    {0x1.0p-1f,       0x1.663ddap-2f,   0x1.aea6c8p-3f,   0x1.7192bp-4f,    -0x1.1b5838p-8f,  -0x1.22a84ep-4f,
     -0x1.c59916p-4f, -0x1.050e5ep-3f,  -0x1.0348eap-3f,  -0x1.d35f62p-4f,  -0x1.86f6b4p-4f,  -0x1.333a0ep-4f,
     -0x1.c8da3cp-5f, -0x1.42dea6p-5f,  -0x1.b3246ap-6f,  -0x1.1836eap-6f,  -0x1.59708p-7f,   -0x1.981c76p-8f,
     -0x1.ce82dcp-9f, -0x1.f72f72p-10f, -0x1.06ebeap-10f, -0x1.080d3p-11f,  -0x1.fde7fap-13f, -0x1.d97f1cp-14f,
     -0x1.a6fb3p-15f, -0x1.6b961ep-16f, -0x1.2ccabap-17f, -0x1.df135ap-19f, -0x1.6f4e7ep-20f, -0x1.0f298cp-21f,
     -0x1.818e6p-23f, -0x1.07fdcep-24f},
    {-0x1.988486p-2f, -0x1.89e516p-2f, -0x1.605af6p-2f, -0x1.225492p-2f, -0x1.b1cd86p-3f, -0x1.1bb36cp-3f,
     -0x1.270e6p-4f,  -0x1.2a93f8p-6f, 0x1.498e28p-6f,  0x1.60ecf4p-5f,  0x1.b1a16cp-5f,  0x1.b2e6e4p-5f,
     0x1.829694p-5f,  0x1.3abafep-5f,  0x1.dd277cp-6f,  0x1.54009ap-6f,  0x1.ca39a6p-7f,  0x1.2530e2p-7f,
     0x1.6546a6p-8f,  0x1.9f7536p-9f,  0x1.cdc2ccp-10f, 0x1.eb275cp-11f, 0x1.f472e8p-12f, 0x1.e8deccp-13f,
     0x1.ca2632p-14f, 0x1.9c227ep-15f, 0x1.6408eep-16f, 0x1.277cc6p-17f, 0x1.d75d2ap-19f, 0x1.696ba6p-20f,
     0x1.0a7898p-21f, 0x1.79eac2p-23f},
    {0x1.be543ep-16f,  0x1.92d458p-5f,   0x1.730df4p-4f,   0x1.e47be2p-4f,   0x1.08df9p-3f,    0x1.fce958p-4f,
     0x1.b3e48ep-4f,   0x1.4b9c1ep-4f,   0x1.b47caep-5f,   0x1.c95686p-6f,   0x1.fdca8p-8f,    -0x1.8630b2p-8f,
     -0x1.bce2d6p-7f,  -0x1.0b338p-6f,   -0x1.01b6fap-6f,  -0x1.b52854p-7f,  -0x1.51d3e8p-7f,  -0x1.e444eap-8f,
     -0x1.453d28p-8f,  -0x1.9c06fep-9f,  -0x1.ee7944p-10f, -0x1.19f65p-10f,  -0x1.324c18p-11f, -0x1.3d807ep-12f,
     -0x1.3a7e0cp-13f, -0x1.2a013ap-14f, -0x1.0e62e4p-15f, -0x1.d62b8cp-17f, -0x1.87f814p-18f, -0x1.398092p-19f,
     -0x1.e15776p-21f, -0x1.62d15ep-22f},
    {0x1.0f25fap-4f,  0x1.f3f826p-5f,   0x1.7bd968p-5f,  0x1.a4d7dap-6f,  0x1.c34334p-9f,  -0x1.06b4e8p-6f,
     -0x1.e563bap-6f, -0x1.26fcd6p-5f,  -0x1.240bcp-5f,  -0x1.f08e1p-6f,  -0x1.6d6352p-6f, -0x1.c4edap-7f,
     -0x1.a7a278p-8f, -0x1.155f7cp-10f, 0x1.26accp-9f,   0x1.edef94p-9f,  0x1.07eba8p-8f,  0x1.d26c12p-9f,
     0x1.6d98ccp-9f,  0x1.05e13ap-9f,   0x1.5c413ap-10f, 0x1.b1ebcep-11f, 0x1.fda91ap-12f, 0x1.1b56acp-12f,
     0x1.2b237p-13f,  0x1.2c92d2p-14f,  0x1.1ff332p-15f, 0x1.07620ep-16f, 0x1.cc910cp-18f, 0x1.814934p-19f,
     0x1.34a08ap-20f, 0x1.d9c466p-22f},
};

template <int M>
VMAMBA_INLINE void gelu_each(f32v (&x)[M]) {
  f32v p[M];
  look_up(kGelu, 5.25f, x, p);
  for (int j = 0; j < M; ++j) x[j] = at_least(splat<f32v>(0.0f), x[j]) - p[j];
}

#else

// To 1e-7: Φ(-a) is e^(-a²/2) times a polynomial, fitted for a small error of the whole (Lawson's weighting).
template <int M>
VMAMBA_INLINE void gelu_each(f32v (&x)[M]) {
  f32v a[M], power[M], p[M];
  for (int j = 0; j < M; ++j) a[j] = at_most(splat<f32v>(6.0f), absolute(x[j]));
  for (int j = 0; j < M; ++j) power[j] = (a[j] * -0.72134752f) * a[j];
  exp2_each(power);
  for (int j = 0; j < M; ++j) p[j] = fma(a[j], splat<f32v>(0x1.e77076p-21f), splat<f32v>(-0x1.6effd0p-16f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], splat<f32v>(0x1.ef44eep-13f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], splat<f32v>(-0x1.9164eap-10f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], splat<f32v>(0x1.bd1a7ap-8f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], splat<f32v>(-0x1.6ffd94p-6f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], splat<f32v>(0x1.e5ba52p-5f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], splat<f32v>(-0x1.0d163cp-3f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], splat<f32v>(0x1.ff0e4ap-3f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], splat<f32v>(-0x1.9872dep-2f));
  for (int j = 0; j < M; ++j) p[j] = fma(p[j], a[j], splat<f32v>(0x1.ffff20p-2f));
  for (int j = 0; j < M; ++j) x[j] = fma(-(a[j] * power[j]), p[j], at_least(splat<f32v>(0.0f), x[j]));
}

#endif

}  // namespace
