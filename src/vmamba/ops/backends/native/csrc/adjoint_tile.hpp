// The backward scan of one tile of tokens and one block of channels: states again from the tile's start state, then
// the adjoint against the route. With Δ = softplus(z), g the gradient for h, and `carried` = decay h[t-1]:
//
//   g[t] = c dy + decay[t+1] g[t+1]    db = Σ_d g Δ x    dc = Σ_d dy h    dx = Σ_n g Δ b + skip dy
//   dΔ = Σ_n g (x b + carried A)       dz = dΔ softplus'(z)               dA = Σ_t g carried Δ
#pragma once

#include "functions.hpp"
#include "tiles.hpp"

namespace {

// What becomes of dx.
enum class Gradient {
  kSet,    // dx = skip dy + …, the gradient for skip added to
  kAdd,    // dx += …
  kPart,   // dx = …, to be added later
  kVisit,  // dx += skip dy + …, the gradient for skip added to
};

template <class T, class S>
struct AdjointTile {
  int64_t count, width, states, valid;  // as in ScanTile
  bool softplus;
  const T* const* rows;
  const S* x;
  const S* dy;
  T* dx;
  const int64_t* offset;  // of each token's row in x, dy and dx
  T* step;                // (count, w): z on entry
  T* slope;               // (count, w): softplus'(z)
  T* decay;               // (count, w)
  T* carried;             // (count, w)
  T* weighted;            // (count, w): Σ_n g b; only for several states
  T* dz;                  // (count, w): the gradient for z
  const T* state;         // (N, w): before the tile
  T* push;                // (N, w): decay g of the token after the tile, then of its first token
  const T* rate;
  const T* A;
  const T* skip;
  T* sums;   // (2N, kTile, lanes): db and dc before the sum over lanes, zero on entry
  T* dA;     // (N, w), these three added to
  T* dbias;  // (w)
  T* dskip;  // (w)
};

// softplus and its slope for token t.
template <int M, class T, class S>
VMAMBA_INLINE void step_and_slope(const AdjointTile<T, S>& tile, int64_t t, int64_t at, Vec<T> (&step)[M]) {
  constexpr int lanes = kLanes<T>;
  const int64_t row = t * tile.width + at;
  Vec<T> slope[M];
  for (int j = 0; j < M; ++j) step[j] = load(tile.step + row + j * lanes);
  if (!tile.softplus) return;
  softplus_with_slope(step, slope);
  for (int j = 0; j < M; ++j) {
    store(tile.step + row + j * lanes, step[j]);
    store(tile.slope + row + j * lanes, slope[j]);
  }
}

// State n through the tile: leaves decay and carried, sums dc.
template <bool one, int M, class T, class S>
VMAMBA_INLINE void states_again(const AdjointTile<T, S>& tile, int64_t n, int64_t at) {
  using V = Vec<T>;
  constexpr int lanes = kLanes<T>;
  V h[M], rate[M];
  for (int j = 0; j < M; ++j) {
    h[j] = load(tile.state + n * tile.width + at + j * lanes);
    rate[j] = load(tile.rate + n * tile.width + at + j * lanes);
  }
  for (int64_t t = 0; t < tile.count; ++t) {
    V step[M], decay[M], x[M], dy[M];
    const int64_t row = t * tile.width + at;
    if (one) {
      step_and_slope(tile, t, at, step);
    } else {
      for (int j = 0; j < M; ++j) step[j] = load(tile.step + row + j * lanes);
    }
    for (int j = 0; j < M; ++j) decay[j] = step[j] * rate[j];
    exp2_each(decay);
    load_row<T>(x, tile.x + tile.offset[t] + at, tile.valid - at);
    load_row<T>(dy, tile.dy + tile.offset[t] + at, tile.valid - at);
    const V b = splat<V>(tile.rows[t][n]);
    T* sum = tile.sums + ((tile.states + n) * kTile + t) * lanes;
    V dc = load(sum);
    for (int j = 0; j < M; ++j) {
      const V carried = decay[j] * h[j];
      h[j] = fma(step[j] * x[j], b, carried);
      dc = fma(dy[j], h[j], dc);
      store(tile.decay + row + j * lanes, decay[j]);
      store(tile.carried + row + j * lanes, carried);
    }
    store(sum, dc);
  }
}

// The adjoint of state n, from the last token to the first.
template <bool one, Gradient kind, int M, class T, class S>
VMAMBA_INLINE void adjoint_of_state(const AdjointTile<T, S>& tile, int64_t n, int64_t at) {
  using V = Vec<T>;
  constexpr int lanes = kLanes<T>;
  const bool first = one || n == 0, last = one || n == tile.states - 1;
  constexpr bool with_skip = kind == Gradient::kSet || kind == Gradient::kVisit;
  V push[M], A[M], dA[M] = {}, dbias[M] = {}, dskip[M] = {};
  for (int j = 0; j < M; ++j) {
    push[j] = load(tile.push + n * tile.width + at + j * lanes);
    A[j] = load(tile.A + n * tile.width + at + j * lanes);
  }
  for (int64_t t = tile.count - 1; t >= 0; --t) {
    V x[M], dy[M], step[M], dstep[M], weighted[M], dx[M];
    const int64_t row = t * tile.width + at;
    load_row<T>(x, tile.x + tile.offset[t] + at, tile.valid - at);
    load_row<T>(dy, tile.dy + tile.offset[t] + at, tile.valid - at);
    const V b = splat<V>(tile.rows[t][n]), c = splat<V>(tile.rows[t][tile.states + n]);
    T* sum = tile.sums + (n * kTile + t) * lanes;
    V db = load(sum);
    for (int j = 0; j < M; ++j) {
      step[j] = load(tile.step + row + j * lanes);
      const V g = fma(c, dy[j], push[j]);
      push[j] = g * load(tile.decay + row + j * lanes);
      const V through = g * load(tile.carried + row + j * lanes);
      db = fma(g, step[j] * x[j], db);
      dA[j] = fma(through, step[j], dA[j]);
      weighted[j] = first ? g * b : fma(g, b, load(tile.weighted + row + j * lanes));
      dstep[j] = first ? through * A[j] : fma(through, A[j], load(tile.dz + row + j * lanes));
    }
    store(sum, db);
    if (!last) {
      for (int j = 0; j < M; ++j) {
        store(tile.weighted + row + j * lanes, weighted[j]);
        store(tile.dz + row + j * lanes, dstep[j]);
      }
      continue;
    }
    T* to = tile.dx + tile.offset[t] + at;
    if (kind == Gradient::kAdd || kind == Gradient::kVisit) load_row<T>(dx, to, tile.valid - at);
    for (int j = 0; j < M; ++j) {
      V dz = fma(weighted[j], x[j], dstep[j]);
      if (tile.softplus) dz = dz * load(tile.slope + row + j * lanes);
      store(tile.dz + row + j * lanes, dz);
      dbias[j] += dz;
      if (with_skip) {
        const V skip = load(tile.skip + at + j * lanes);
        dskip[j] = fma(dy[j], x[j], dskip[j]);
        dx[j] = kind == Gradient::kVisit ? fma(skip, dy[j], dx[j]) : skip * dy[j];
      }
      if (with_skip)
        dx[j] = fma(weighted[j], step[j], dx[j]);
      else  // rounded before it is added: parts that are added later give the same
        dx[j] = kind == Gradient::kPart ? weighted[j] * step[j] : dx[j] + weighted[j] * step[j];
    }
    store_row<T>(to, dx, tile.valid - at);
  }
  const auto add = [at](T* to, const V(&v)[M]) {
    for (int j = 0; j < M; ++j) store(to + at + j * lanes, load(to + at + j * lanes) + v[j]);
  };
  for (int j = 0; j < M; ++j) store(tile.push + n * tile.width + at + j * lanes, push[j]);
  add(tile.dA + n * tile.width, dA);
  if (last) add(tile.dbias, dbias);
  if (last && with_skip) add(tile.dskip, dskip);
}

template <Gradient kind, class T, class S>
inline void adjoint_tile(const AdjointTile<T, S>& tile) {
  for_groups<T>(tile.width, [&](auto group, int64_t at) {
    constexpr int M = decltype(group)::vectors;
    if (tile.states == 1) {
      states_again<true, M>(tile, 0, at);
      adjoint_of_state<true, kind, M>(tile, 0, at);
      return;
    }
    for (int64_t t = 0; t < tile.count; ++t) {
      Vec<T> step[M];
      step_and_slope(tile, t, at, step);
    }
    for (int64_t n = 0; n < tile.states; ++n) {
      states_again<false, M>(tile, n, at);
      adjoint_of_state<false, kind, M>(tile, n, at);
    }
  });
}

}  // namespace
