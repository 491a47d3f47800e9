// y = Σ_k scan_k(x): every task is one image and one block of channels, through all routes.
#pragma once

#include "functions.hpp"
#include "matmul.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

namespace {

// One tile of one route for M vectors of channels: Δ, decay, recurrence and output, in registers.
template <class T, class S>
struct ForwardTile {
  int64_t count, width, rank, states;  // tokens of the tile, channels of the block
  const T* const* rows;                // dbc rows of the tokens: R of the low rank, N of b, N of c
  const S* x;                          // the block's channels of token 0
  T* y;
  const int64_t* offset;  // of each token's row in x and y
  T* step;                // (count, w): Δ before softplus, then Δ
  T* state;               // (N, w)
};

// valid: channels of the block from this group on; `skip` is null except for the first route, which writes y.
template <int M, class T, class S>
VMAMBA_INLINE void scan_one_state(const ForwardTile<T, S>& tile, int64_t at, int64_t valid, const T* rate, const T* skip,
                                  bool first) {
  using V = Vec<T>;
  constexpr int lanes = kLanes<T>;
  V h[M], r[M], d[M];
  for (int j = 0; j < M; ++j) {
    h[j] = load(tile.state + at + j * lanes);
    r[j] = load(rate + at + j * lanes);
    d[j] = load(skip + at + j * lanes);
  }
  const bool whole = valid >= M * lanes;
  for (int64_t t = 0; t < tile.count; ++t) {
    V step[M], decay[M], x[M], y[M];
    for (int j = 0; j < M; ++j) step[j] = load(tile.step + t * tile.width + at + j * lanes);
    softplus(step);
    for (int j = 0; j < M; ++j) decay[j] = step[j] * r[j];
    exp2_each(decay);
    const S* from = tile.x + tile.offset[t] + at;
    T* to = tile.y + tile.offset[t] + at;
    const T* low = tile.rows[t] + tile.rank;
    const V b = splat<V>(low[0]), c = splat<V>(low[1]);
    for (int j = 0; j < M; ++j) {
      x[j] = whole ? load_as<T>(from + j * lanes) : load_some<T>(from + j * lanes, int(valid - j * lanes));
      const V drive = (step[j] * x[j]) * b;
      h[j] = fma(decay[j], h[j], drive);
    }
    if (first) {
      for (int j = 0; j < M; ++j) y[j] = d[j] * x[j];
    } else {
      for (int j = 0; j < M; ++j)
        y[j] = whole ? load(to + j * lanes) : load_some<T>(to + j * lanes, int(valid - j * lanes));
    }
    for (int j = 0; j < M; ++j) y[j] = fma(c, h[j], y[j]);
    if (whole) {
      for (int j = 0; j < M; ++j) store(to + j * lanes, y[j]);
    } else {
      for (int j = 0; j < M; ++j) store_some(to + j * lanes, y[j], int(valid - j * lanes));
    }
  }
  for (int j = 0; j < M; ++j) store(tile.state + at + j * lanes, h[j]);
}

// The same for any number of states: Δ first, then state after state.
template <int M, class T, class S>
VMAMBA_INLINE void scan_states(const ForwardTile<T, S>& tile, int64_t at, int64_t valid, const T* rate, const T* skip,
                               bool first) {
  using V = Vec<T>;
  constexpr int lanes = kLanes<T>;
  for (int64_t t = 0; t < tile.count; ++t) {
    V step[M];
    for (int j = 0; j < M; ++j) step[j] = load(tile.step + t * tile.width + at + j * lanes);
    softplus(step);
    for (int j = 0; j < M; ++j) store(tile.step + t * tile.width + at + j * lanes, step[j]);
    if (first) {
      const int64_t row = tile.offset[t] + at;
      for (int j = 0; j < M; ++j) {
        const V x = load_some<T>(tile.x + row + j * lanes, int(valid - j * lanes));
        store_some(tile.y + row + j * lanes, load(skip + at + j * lanes) * x, int(valid - j * lanes));
      }
    }
  }
  for (int64_t n = 0; n < tile.states; ++n) {
    T* state = tile.state + n * tile.width + at;
    V h[M], r[M];
    for (int j = 0; j < M; ++j) {
      h[j] = load(state + j * lanes);
      r[j] = load(rate + n * tile.width + at + j * lanes);
    }
    for (int64_t t = 0; t < tile.count; ++t) {
      V step[M], decay[M];
      for (int j = 0; j < M; ++j) {
        step[j] = load(tile.step + t * tile.width + at + j * lanes);
        decay[j] = step[j] * r[j];
      }
      exp2_each(decay);
      const int64_t row = tile.offset[t] + at;
      const T* low = tile.rows[t] + tile.rank + n;
      const V b = splat<V>(low[0]), c = splat<V>(low[tile.states]);
      for (int j = 0; j < M; ++j) {
        const int left = int(valid - j * lanes);
        const V drive = (step[j] * load_some<T>(tile.x + row + j * lanes, left)) * b;
        h[j] = fma(decay[j], h[j], drive);
        const V y = load_some<T>(tile.y + row + j * lanes, left);
        store_some(tile.y + row + j * lanes, fma(c, h[j], y), left);
      }
    }
    for (int j = 0; j < M; ++j) store(state + j * lanes, h[j]);
  }
}

template <int M, class T, class S>
inline void scan_group(const ForwardTile<T, S>& tile, int64_t at, int64_t valid, const BlockParameters<T>& p,
                       const T* skip, bool first) {
  if (tile.states == 1) {
    if (first) return scan_one_state<M>(tile, at, valid, p.rate, skip, true);
    return scan_one_state<M>(tile, at, valid, p.rate, skip, false);
  }
  scan_states<M>(tile, at, valid, p.rate, skip, first);
}

template <class T, class S>
inline void scan_tile(const ForwardTile<T, S>& tile, int64_t valid, const BlockParameters<T>& p, const T* skip,
                      bool first) {
  const int vectors = int(tile.width / kLanes<T>);
  int v = 0;
#if VMAMBA_VECTOR_BYTES == 64
  for (; v + 4 <= vectors; v += 4) scan_group<4>(tile, v * kLanes<T>, valid - v * kLanes<T>, p, skip, first);
  for (; v + 3 <= vectors; v += 3) scan_group<3>(tile, v * kLanes<T>, valid - v * kLanes<T>, p, skip, first);
#endif
  for (; v + 2 <= vectors; v += 2) scan_group<2>(tile, v * kLanes<T>, valid - v * kLanes<T>, p, skip, first);
  for (; v < vectors; ++v) scan_group<1>(tile, v * kLanes<T>, valid - v * kLanes<T>, p, skip, first);
}

// The widest block that still gives every thread as much to do as the others. Channels do not meet in the forward
// pass, so this choice does not show in the result.
inline int64_t forward_block(const ImageScan& s) {
  int64_t best = kUnit, best_cost = -1;
  for (int64_t width = kUnit; width <= kMaxBlock; width += kUnit) {
    const int64_t rounds = ceil_div(s.batch * ceil_div(s.channels, width), s.threads);
    const int64_t cost = rounds * (width + 4);  // 4: what a token costs a block whatever its width
    if (best_cost < 0 || cost <= best_cost) {
      best = width;
      best_cost = cost;
    }
  }
  return best;
}

template <class T, class S>
void image_forward(const ImageScan& s, T* y) {
  const int64_t width = forward_block(s), blocks = ceil_div(s.channels, width);
  const int64_t size = BlockParameters<T>::size(width, s.rank, s.states);
  vmamba::Memory packed(blocks * s.routes * size * int64_t(sizeof(T)));
  vmamba::for_each(s.threads, blocks * s.routes, 0, [&](int64_t index, void*) {
    const int64_t k = index % s.routes, first = index / s.routes * width, at = k * s.channels + first;
    BlockParameters<T>(packed.as<T>() + index * size, width, s.rank, s.states)
        .fill(static_cast<const T*>(s.weight) + at * s.rank, static_cast<const T*>(s.bias) + at,
              static_cast<const T*>(s.A) + at * s.states, static_cast<const T*>(s.D) + at,
              smaller(width, s.channels - first), width, s.rank, s.states);
  });

  const int64_t row_buffer = round_up(s.row(), kLanes<T>) * kTile;
  const int64_t scratch = (kTile * width + s.states * width + width + row_buffer) * int64_t(sizeof(T));
  vmamba::for_each(s.threads, s.batch * blocks, scratch, [&](int64_t index, void* memory) {
    const int64_t image = index / blocks, block = index % blocks, first = block * width;
    const int64_t valid = smaller(width, s.channels - first);
    T* step = static_cast<T*>(memory);
    T* state = step + kTile * width;
    T* skip = state + s.states * width;
    T* buffer = skip + width;
    int64_t tokens[kTile], offset[kTile];
    const T* rows[kTile];
    const S* x = static_cast<const S*>(s.x) + image * s.tokens() * s.channels + first;
    T* out = y + image * s.tokens() * s.channels + first;

    for (int64_t d = 0; d < width; ++d) {
      skip[d] = 0;
      for (int64_t k = 0; k < s.routes; ++k)
        skip[d] += BlockParameters<T>(packed.as<T>() + (block * s.routes + k) * size, width, s.rank, s.states).skip[d];
    }
    for (int64_t k = 0; k < s.routes; ++k) {
      const BlockParameters<T> p(packed.as<T>() + (block * s.routes + k) * size, width, s.rank, s.states);
      const S* dbc = static_cast<const S*>(s.dbc) + (image * s.tokens() * s.routes + k) * s.row();
      const Walk walk{s.route[k], s.height, s.width};
      const int64_t segment = walk.segment(), length = walk.tile();
      for (int64_t begin = 0; begin < walk.length(); begin += segment) {
        for (int64_t i = 0; i < s.states * width; ++i) state[i] = 0;
        for (int64_t at = begin; at < begin + segment; at += length) {
          const int64_t count = smaller(length, begin + segment - at);
          walk.tokens(at, count, tokens);
          for (int64_t t = 0; t < count; ++t) offset[t] = tokens[t] * s.channels;
          tile_rows<T>(dbc, s.routes * s.row(), s.row(), tokens, count, buffer, rows);
          product(step, width, rows, count, p.weight, width, p.bias, s.rank, int(width / kLanes<T>));
          const ForwardTile<T, S> tile{count, width, s.rank, s.states, rows, x, out, offset, step, state};
          scan_tile(tile, valid, p, skip, k == 0);
        }
      }
    }
  });
}

}  // namespace
