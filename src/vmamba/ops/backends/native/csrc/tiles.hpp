// How the work is cut: tiles of tokens along a route, blocks of channels, and the parameters of a block laid out for
// vectors.
#pragma once

#include "simd.hpp"

namespace {

using vmamba::ImageScan;
using vmamba::Route;

constexpr int kUnit = 16;      // channels come in blocks of a multiple of this: one cache line of float32
constexpr int kMaxBlock = 64;  // channels of a block: a tile of Δ stays in the first-level cache
constexpr int kTile = 32;      // tokens of a tile

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Channels of a block of a forward pass over `lines` times `channels`: the widest that still gives every thread as much
// to do as the others. Channels do not meet in that pass, so this choice does not show in the result.
inline int64_t forward_block(int64_t lines, int64_t channels, int threads) {
  int64_t best = kUnit, best_cost = -1;
  for (int64_t width = kUnit; width <= kMaxBlock; width += kUnit) {
    const int64_t rounds = ceil_div(lines * ceil_div(channels, width), threads);
    const int64_t cost = rounds * (width + 4);  // 4: what a token costs a block whatever its width
    if (best_cost < 0 || cost <= best_cost) {
      best = width;
      best_cost = cost;
    }
  }
  return best;
}

// Calls body(group, at) for groups of vectors that make up `width` channels from channel `at` on.
template <int M>
struct Group {
  static constexpr int vectors = M;
};

template <class T, class Body>
VMAMBA_INLINE void for_groups(int64_t width, const Body& body) {
  constexpr int lanes = kLanes<T>;
  int64_t at = 0;
  if constexpr (kVectorBytes == 64) {  // thirty-two registers
    for (; at + 4 * lanes <= width; at += 4 * lanes) body(Group<4>{}, at);
    for (; at + 3 * lanes <= width; at += 3 * lanes) body(Group<3>{}, at);
  }
  for (; at + 2 * lanes <= width; at += 2 * lanes) body(Group<2>{}, at);
  for (; at < width; at += lanes) body(Group<1>{}, at);
}

// M vectors of a row of which `valid` channels exist, from storage type S; the rest reads as zero, is not written.
template <class T, class S, int M>
VMAMBA_INLINE void load_row(Vec<T> (&v)[M], const S* from, int64_t valid) {
  constexpr int lanes = kLanes<T>;
  if (valid >= M * lanes) {
    for (int j = 0; j < M; ++j) v[j] = load_as<T>(from + j * lanes);
  } else {
    for (int j = 0; j < M; ++j) v[j] = load_some<T>(from + j * lanes, int(valid) - j * lanes);
  }
}

template <class T, int M>
VMAMBA_INLINE void store_row(T* to, const Vec<T> (&v)[M], int64_t valid) {
  constexpr int lanes = kLanes<T>;
  if (valid >= M * lanes) {
    for (int j = 0; j < M; ++j) store(to + j * lanes, v[j]);
  } else {
    for (int j = 0; j < M; ++j) store_some(to + j * lanes, v[j], int(valid) - j * lanes);
  }
}

// A route as a map from time to token: the only form in which routes exist here.
struct Walk {
  Route route;
  int64_t height, width;
  const int64_t* order;  // of `scan_routes`, or null
  int64_t visits;

  Walk(const ImageScan& s, int64_t image, int64_t k)
      : route(s.order ? Route{} : s.route[k]),
        height(s.height),
        width(s.width),
        order(s.order ? s.order + ((s.by_sample ? image * s.routes : 0) + k) * s.visits : nullptr),
        visits(s.visits) {}

  int64_t length() const { return order ? visits : height * width; }
  // Tokens between two restarts of the state.
  int64_t segment() const {
    if (!route.per_line) return length();
    return route.columns ? height : width;
  }
  // Tokens of a tile: segments are cut evenly.
  int64_t tile() const { return ceil_div(segment(), ceil_div(segment(), kTile)); }
  int64_t tiles_of_segment() const { return ceil_div(segment(), tile()); }

  // Image-order tokens visited at the times first … first + count - 1.
  void tokens(int64_t first, int64_t count, int64_t* out) const {
    if (order) {
      for (int64_t i = 0; i < count; ++i) out[i] = order[first + i];
      return;
    }
    int64_t at = route.backward ? length() - 1 - first : first;
    const int64_t step = route.backward ? -1 : 1;
    if (!route.columns) {
      for (int64_t i = 0; i < count; ++i) out[i] = at + i * step;
      return;
    }
    int64_t column = at / height, row = at % height;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = row * width + column;
      row += step;
      if (row == height) {
        row = 0;
        ++column;
      } else if (row < 0) {
        row = height - 1;
        --column;
      }
    }
  }
};

// Rows of `dbc` (low rank, b, c) for the tokens of a tile, as pointers to the accumulation type. Half-precision rows
// are widened into `buffer`, kTile rows of row_buffer_stride.
template <class T>
inline int64_t row_buffer_stride(int64_t size) {
  return round_up(size, kLanes<T>);
}

template <class T, class S>
inline void tile_rows(const S* dbc, int64_t stride, int64_t size, const int64_t* tokens, int64_t count, T* buffer,
                      const T** rows) {
  for (int64_t t = 0; t < count; ++t) {
    const S* row = dbc + tokens[t] * stride;
    if constexpr (sizeof(S) == sizeof(T)) {
      rows[t] = row;
    } else {
      T* wide = buffer + t * row_buffer_stride<T>(size);
      for (int64_t i = 0; i < size; i += kLanes<T>)
        store(wide + i, load_some<T>(row + i, int(smaller(size - i, kLanes<T>))));
      rows[t] = wide;
    }
  }
}

}  // namespace
