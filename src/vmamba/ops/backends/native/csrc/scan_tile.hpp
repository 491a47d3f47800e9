// The forward scan of one tile of tokens and one block of channels.
#pragma once

#include "rough.hpp"
#include "tiles.hpp"

namespace {

// What a scan leaves beside its states.
enum class Output {
  kSet,    // y = skip x + Σ c h
  kAdd,    // y += Σ c h
  kVisit,  // y += skip x + Σ c h, where a token may come several times
  kNone,   // the states only
};

template <class T, class S>
struct ScanTile {
  int64_t count, width, states, valid;  // tokens of the tile; padded width, states and true width of the block
  bool softplus;                        // or Δ is taken as it comes
  const T* const* rows;                 // of each token: N of b, N of c
  const S* x;                           // the block's channels of token 0
  T* y;
  const int64_t* offset;  // of each token's row in x and y
  T* step;                // (count, w): Δ before softplus; Δ afterwards unless there is one state
  T* state;               // (N, w)
  const T* rate;          // (N, w)
  const T* skip;          // (w)
};

// softplus and 2^t for results beside activations of storage type S. States alone are for gradients, which are exact.
template <Output kind, class S, int M, class V>
VMAMBA_INLINE void softplus_for(V (&z)[M]) {
  if constexpr (std::is_same<S, bfloat16>::value && kind != Output::kNone)
    rough_softplus(z);
  else
    softplus(z);
}
template <Output kind, class S, int M, class V>
VMAMBA_INLINE void exp2_for(V (&t)[M]) {
  if constexpr (std::is_same<S, bfloat16>::value && kind != Output::kNone)
    rough_exp2(t);
  else
    exp2_each(t);
}

// One state: Δ, decay, recurrence and output of M vectors of channels stay in registers. All channels of a `whole`
// group exist.
template <Output kind, bool whole, int M, class T, class S>
VMAMBA_INLINE void scan_one_state(const ScanTile<T, S>& tile, int64_t at) {
  using V = Vec<T>;
  constexpr int lanes = kLanes<T>;
  const int64_t valid = whole ? M * lanes : tile.valid - at;
  V h[M], rate[M], skip[M];
  for (int j = 0; j < M; ++j) {
    h[j] = load(tile.state + at + j * lanes);
    rate[j] = load(tile.rate + at + j * lanes);
    if (kind == Output::kSet || kind == Output::kVisit) skip[j] = load(tile.skip + at + j * lanes);
  }
  for (int64_t t = 0; t < tile.count; ++t) {
    V step[M], decay[M], x[M], y[M];
    for (int j = 0; j < M; ++j) step[j] = load(tile.step + t * tile.width + at + j * lanes);
    if (tile.softplus) softplus_for<kind, S>(step);
    for (int j = 0; j < M; ++j) decay[j] = step[j] * rate[j];
    exp2_for<kind, S>(decay);
    load_row<T>(x, tile.x + tile.offset[t] + at, valid);
    const V b = splat<V>(tile.rows[t][0]), c = splat<V>(tile.rows[t][1]);
    for (int j = 0; j < M; ++j) {
      const V drive = (step[j] * x[j]) * b;
      h[j] = fma(decay[j], h[j], drive);
    }
    if (kind == Output::kNone) continue;
    T* to = tile.y + tile.offset[t] + at;
    if (kind != Output::kSet) load_row<T>(y, to, valid);
    for (int j = 0; j < M; ++j) {
      if (kind == Output::kSet) y[j] = skip[j] * x[j];
      if (kind == Output::kVisit) y[j] = fma(skip[j], x[j], y[j]);
      y[j] = fma(c, h[j], y[j]);
    }
    store_row<T>(to, y, valid);
  }
  for (int j = 0; j < M; ++j) store(tile.state + at + j * lanes, h[j]);
}

// Any number of states: Δ first, then state after state.
template <Output kind, int M, class T, class S>
VMAMBA_INLINE void scan_states(const ScanTile<T, S>& tile, int64_t at) {
  using V = Vec<T>;
  constexpr int lanes = kLanes<T>;
  for (int64_t t = 0; t < tile.count; ++t) {
    V step[M], x[M], y[M];
    if (tile.softplus) {
      T* steps = tile.step + t * tile.width + at;
      for (int j = 0; j < M; ++j) step[j] = load(steps + j * lanes);
      softplus_for<kind, S>(step);
      for (int j = 0; j < M; ++j) store(steps + j * lanes, step[j]);
    }
    if (kind == Output::kSet || kind == Output::kVisit) {
      T* to = tile.y + tile.offset[t] + at;
      load_row<T>(x, tile.x + tile.offset[t] + at, tile.valid - at);
      if (kind == Output::kVisit) load_row<T>(y, to, tile.valid - at);
      for (int j = 0; j < M; ++j) {
        const V skip = load(tile.skip + at + j * lanes);
        y[j] = kind == Output::kVisit ? fma(skip, x[j], y[j]) : skip * x[j];
      }
      store_row<T>(to, y, tile.valid - at);
    }
  }
  for (int64_t n = 0; n < tile.states; ++n) {
    V h[M], rate[M];
    for (int j = 0; j < M; ++j) {
      h[j] = load(tile.state + n * tile.width + at + j * lanes);
      rate[j] = load(tile.rate + n * tile.width + at + j * lanes);
    }
    for (int64_t t = 0; t < tile.count; ++t) {
      V step[M], decay[M], x[M], y[M];
      for (int j = 0; j < M; ++j) {
        step[j] = load(tile.step + t * tile.width + at + j * lanes);
        decay[j] = step[j] * rate[j];
      }
      exp2_for<kind, S>(decay);
      load_row<T>(x, tile.x + tile.offset[t] + at, tile.valid - at);
      const V b = splat<V>(tile.rows[t][n]), c = splat<V>(tile.rows[t][tile.states + n]);
      for (int j = 0; j < M; ++j) {
        const V drive = (step[j] * x[j]) * b;
        h[j] = fma(decay[j], h[j], drive);
      }
      if (kind == Output::kNone) continue;
      T* to = tile.y + tile.offset[t] + at;
      load_row<T>(y, to, tile.valid - at);
      for (int j = 0; j < M; ++j) y[j] = fma(c, h[j], y[j]);
      store_row<T>(to, y, tile.valid - at);
    }
    for (int j = 0; j < M; ++j) store(tile.state + n * tile.width + at + j * lanes, h[j]);
  }
}

template <Output kind, class T, class S>
inline void scan_tile(const ScanTile<T, S>& tile) {
  for_groups<T>(tile.width, [&](auto group, int64_t at) {
    constexpr int M = decltype(group)::vectors;
    if (tile.states == 1 && tile.valid - at >= M * kLanes<T>)
      scan_one_state<kind, true, M>(tile, at);
    else if (tile.states == 1)
      scan_one_state<kind, false, M>(tile, at);
    else
      scan_states<kind, M>(tile, at);
  });
}

}  // namespace
