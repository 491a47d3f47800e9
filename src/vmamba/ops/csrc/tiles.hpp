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

// The parameters of one route for one block of channels, padded with zeros to the block's width w: a padding channel
// has Δ = log 2, no input and no output.
template <class T>
struct BlockParameters {
  T* weight;  // (R, w)
  T* bias;    // (w)
  T* rate;    // (N, w)  A / log 2, so that decay = 2^(Δ · rate)
  T* skip;    // (w)

  static int64_t size(int64_t width, int64_t rank, int64_t states) { return (rank + states + 2) * width; }

  BlockParameters(T* at, int64_t width, int64_t rank, int64_t states)
      : weight(at), bias(at + rank * width), rate(bias + width), skip(rate + states * width) {}

  void fill(const T* weight_dr, const T* bias_d, const T* A_dn, const T* skip_d, int64_t valid, int64_t width,
            int64_t rank, int64_t states) {
    const T log2_e = T(1.4426950408889634);
    for (int64_t r = 0; r < rank; ++r)
      for (int64_t d = 0; d < width; ++d) weight[r * width + d] = d < valid ? weight_dr[d * rank + r] : T(0);
    for (int64_t n = 0; n < states; ++n)
      for (int64_t d = 0; d < width; ++d) rate[n * width + d] = d < valid ? A_dn[d * states + n] * log2_e : T(0);
    for (int64_t d = 0; d < width; ++d) {
      bias[d] = d < valid && bias_d ? bias_d[d] : T(0);
      skip[d] = d < valid && skip_d ? skip_d[d] : T(0);
    }
  }
};

// A route as a map from time to token: the only form in which routes exist here.
struct Walk {
  Route route;
  int64_t height, width;

  int64_t length() const { return height * width; }
  // Tokens between two restarts of the state.
  int64_t segment() const {
    if (!route.per_line) return length();
    return route.columns ? height : width;
  }
  // Tokens of a tile: segments are cut evenly.
  int64_t tile() const { return ceil_div(segment(), ceil_div(segment(), kTile)); }

  // Image-order tokens visited at the times first … first + count - 1.
  void tokens(int64_t first, int64_t count, int64_t* out) const {
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
// are widened into `buffer`.
template <class T, class S>
inline void tile_rows(const S* dbc, int64_t stride, int64_t size, const int64_t* tokens, int64_t count, T* buffer,
                      const T** rows) {
  for (int64_t t = 0; t < count; ++t) {
    const S* row = dbc + tokens[t] * stride;
    if constexpr (sizeof(S) == sizeof(T)) {
      rows[t] = row;
    } else {
      T* wide = buffer + t * round_up(size, kLanes<T>);
      for (int64_t i = 0; i < size; i += kLanes<T>)
        store(wide + i, load_some<T>(row + i, int(smaller(size - i, kLanes<T>))));
      rows[t] = wide;
    }
  }
}

}  // namespace
