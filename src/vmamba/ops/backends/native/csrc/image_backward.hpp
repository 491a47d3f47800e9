// The gradients of an image scan. Every task is one image and one block of channels: it owns its columns of dx, and
// leaves partial sums of what channels (ddbc) or images (parameters) share. These are added in a fixed order. Where
// there are too few such tasks, every route is one, with a dx of its own; these, too, are added in the order of the
// routes.
#pragma once

#include "adjoint_tile.hpp"
#include "matmul.hpp"
#include "parameters.hpp"
#include "scan_tile.hpp"

namespace {

using vmamba::ImageGradients;

// Fixed by the number of channels alone, since sums over blocks are rounded: the least padding, then an even number of
// blocks, then the widest.
inline int64_t backward_block(int64_t channels) {
  int64_t best = kUnit, best_cost = -1;
  for (int64_t width = kUnit; width <= kMaxBlock; width += kUnit) {
    const int64_t blocks = ceil_div(channels, width);
    const int64_t cost = 4 * blocks * width + (blocks % 2) * width + 16 * blocks;
    if (best_cost < 0 || cost <= best_cost) {
      best = width;
      best_cost = cost;
    }
  }
  return best;
}

// Partial gradients of the parameters of one block, as sums over the tokens of one image.
template <class T>
struct ParameterSums {
  int64_t width, rank, states, routes, skips;  // skips: one for all routes, or one each

  int64_t route_size() const { return (rank + states + 1) * width; }
  int64_t size() const { return routes * route_size() + skips * width; }
  T* weight(T* at, int64_t k) const { return at + k * route_size(); }                                   // (R, w)
  T* A(T* at, int64_t k) const { return weight(at, k) + rank * width; }                                 // (N, w)
  T* bias(T* at, int64_t k) const { return weight(at, k) + (rank + states) * width; }                   // (w)
  T* skip(T* at, int64_t k) const { return at + routes * route_size() + (skips > 1 ? k * width : 0); }  // (w)
};

// Memory of one thread, cut into its parts.
template <class T>
struct BackwardScratch {
  T *step, *slope, *decay, *carried, *weighted, *dz, *sums, *low, *buffer, *state, *push, *starts;
  int64_t elements;

  BackwardScratch(T* at, const ImageScan& s, int64_t width, int64_t tiles) {
    T* begin = at;
    const auto take = [&at](int64_t n) {
      T* part = at;
      at += round_up(n, 16);
      return part;
    };
    step = take(kTile * width);
    slope = take(kTile * width);
    decay = take(kTile * width);
    carried = take(kTile * width);
    weighted = take(s.states > 1 ? kTile * width : 0);
    dz = take(kTile * width);
    sums = take(2 * s.states * kTile * kLanes<T>);
    low = take(kTile * BlockParameters<T>::padded_rank(s.rank));
    buffer = take(kTile * row_buffer_stride<T>(s.row()));
    state = take(s.states * width);
    push = take(s.states * width);
    starts = take(tiles * s.states * width);
    elements = at - begin;
  }
};

template <class T>
inline void zero(T* at, int64_t count) {
  for (int64_t i = 0; i < count; ++i) at[i] = 0;
}

// One route of one task.
template <class T, class S>
struct RouteBackward {
  const ImageScan& s;
  const BlockParameters<T> p;
  const BackwardScratch<T>& scratch;
  const Walk walk;
  const S* dbc;  // of token 0 and this route
  T* ddbc;       // likewise
  T* dweight;    // (R, w)
  ScanTile<T, S> scan;
  AdjointTile<T, S> adjoint;
  int64_t tokens[kTile], offset[kTile];
  const T *rows[kTile], *state_rows[kTile];

  // Tokens at … at + count - 1: their rows, and z by the projection of Δ.
  void open(int64_t at, int64_t count) {
    walk.tokens(at, count, tokens);
    tile_rows<T>(dbc, s.row_stride(), s.row(), tokens, count, scratch.buffer, rows);
    for (int64_t t = 0; t < count; ++t) {
      offset[t] = tokens[t] * s.channels;
      state_rows[t] = rows[t] + s.rank;
    }
    run(Product<T>{scratch.step, scan.width, rows, p.weight, scan.width, p.bias, s.rank}, count, scan.width);
  }

  void segment(int64_t begin, Gradient kind) {
    const int64_t length = walk.tile(), end = begin + walk.segment(), width = scan.width;
    const int64_t state_size = s.states * width;
    T* start = scratch.starts;
    zero(scratch.state, state_size);
    for (int64_t at = begin; at < end; at += length) {
      for (int64_t i = 0; i < state_size; ++i) start[i] = scratch.state[i];
      start += state_size;
      if (at + length >= end) break;  // nobody asks for the state after the last tile
      scan.count = length;
      open(at, scan.count);
      scan_tile<Output::kNone>(scan);
    }
    zero(scratch.push, state_size);
    for (int64_t at = begin + (walk.tiles_of_segment() - 1) * length; at >= begin; at -= length) {
      start -= state_size;
      adjoint.count = smaller(length, end - at);
      adjoint.state = start;
      open(at, adjoint.count);
      zero(scratch.sums, 2 * s.states * kTile * kLanes<T>);
      if (kind == Gradient::kVisit)
        adjoint_tile<Gradient::kVisit>(adjoint);
      else if (kind == Gradient::kSet)
        adjoint_tile<Gradient::kSet>(adjoint);
      else if (kind == Gradient::kAdd)
        adjoint_tile<Gradient::kAdd>(adjoint);
      else
        adjoint_tile<Gradient::kPart>(adjoint);
      close();
    }
  }

  // From dz and the sums of a tile to its rows of ddbc, and on to dweight.
  void close() {
    const int64_t width = scan.width, padded = BlockParameters<T>::padded_rank(s.rank);
    run(TransposedProduct<T>{dweight, width, rows, scratch.dz, width, adjoint.count}, s.rank, width);
    const T* dz[kTile];
    for (int64_t t = 0; t < adjoint.count; ++t) dz[t] = scratch.dz + t * width;
    alignas(64) static constexpr T zeros[kMaxBlock] = {};
    for (int64_t r = 0; r < padded; r += kMaxBlock) {
      const int64_t part = smaller(kMaxBlock, padded - r);
      run(Product<T>{scratch.low + r, padded, dz, p.by_rank + r, padded, zeros, width}, adjoint.count, part);
    }
    for (int64_t t = 0; t < adjoint.count; ++t) {
      T* to = ddbc + tokens[t] * s.row_stride();
      if (!s.order) zero(to, s.row());
      for (int64_t r = 0; r < s.rank; ++r) to[r] += scratch.low[t * padded + r];
      for (int64_t n = 0; n < 2 * s.states; ++n)
        to[s.rank + n] += sum_lanes<T>(load(scratch.sums + (n * kTile + t) * kLanes<T>));
    }
  }
};

template <class T, class S>
void image_backward(const ImageScan& s, const ImageGradients& g) {
  const int64_t width = backward_block(s.channels), blocks = ceil_div(s.channels, width);
  const ImageParameters<T> parameters(s, width, Layout::kBackward);
  const ParameterSums<T> sums{width, s.rank, s.states, s.routes, s.order ? s.routes : 1};
  const int64_t map = s.tokens() * s.row_stride();  // elements of an image's ddbc

  int64_t tiles = 0;
  for (int64_t k = 0; k < s.routes; ++k) {
    const int64_t n = Walk(s, 0, k).tiles_of_segment();
    if (n > tiles) tiles = n;
  }
  const int64_t scratch_bytes = BackwardScratch<T>(nullptr, s, width, tiles).elements * int64_t(sizeof(T));

  // Images go through in groups, so that partial sums need little memory whatever the batch.
  const int64_t budget = (int64_t(64) << 20) / (blocks * (map + sums.size()) * int64_t(sizeof(T)) + 1);
  const int64_t for_threads = ceil_div(2 * s.threads, blocks);
  const int64_t group = smaller(s.batch, budget > for_threads ? budget : for_threads);
  vmamba::Memory parts(blocks > 1 ? group * blocks * map * int64_t(sizeof(T)) : 0);
  vmamba::Memory shares(group * blocks * sums.size() * int64_t(sizeof(T)));
  vmamba::Memory totals(blocks * sums.size() * int64_t(sizeof(T)));
  zero(totals.as<T>(), blocks * sums.size());
  const int64_t tasks = group * blocks, map_of_x = s.tokens() * s.channels;
  const bool by_route = !s.order && s.routes > 1 && (tasks < s.threads || (tasks % s.threads && tasks < 4 * s.threads));
  const int64_t split = by_route ? s.routes : 1;                               // tasks of an image and block
  vmamba::Memory others((split - 1) * group * map_of_x * int64_t(sizeof(T)));  // dx of the routes after the first

  for (int64_t from = 0; from < s.batch; from += group) {
    const int64_t images = smaller(group, s.batch - from);
    const int64_t work = 3 * s.length() * s.routes * width * s.states;
    zero(shares.as<T>(), images * blocks * sums.size());
    vmamba::for_each(s.threads, images * blocks * split, work / split, scratch_bytes, [&](int64_t task, void* memory) {
      const int64_t index = task / split, only = task % split;
      const int64_t image = from + index / blocks, block = index % blocks, first = block * width;
      const BackwardScratch<T> scratch(static_cast<T*>(memory), s, width, tiles);
      const int64_t pixels = image * s.tokens() * s.channels + first;
      T* part = blocks > 1 ? parts.as<T>() + index * map : static_cast<T*>(g.ddbc) + image * map;
      T* share = shares.as<T>() + index * sums.size();
      if (s.order && blocks > 1) zero(part, map);
      for (int64_t k = only; k < (by_route ? only + 1 : s.routes); ++k) {
        const BlockParameters<T> p = parameters(block, k);
        RouteBackward<T, S> route{s,
                                  p,
                                  scratch,
                                  Walk(s, image, k),
                                  static_cast<const S*>(s.dbc) + s.first_row(image, k),
                                  part + s.first_row(0, k),
                                  sums.weight(share, k),
                                  {},
                                  {},
                                  {},
                                  {},
                                  {},
                                  {}};
        const Gradient kind = s.order    ? Gradient::kVisit
                              : k == 0   ? Gradient::kSet
                              : by_route ? Gradient::kPart
                                         : Gradient::kAdd;
        T* dx = static_cast<T*>(g.dx) + pixels;
        if (by_route && k > 0) dx = others.as<T>() + ((k - 1) * group + image - from) * map_of_x + first;
        route.scan = {0,
                      width,
                      s.states,
                      s.channels - first,
                      true,
                      route.state_rows,
                      static_cast<const S*>(s.x) + pixels,
                      nullptr,
                      route.offset,
                      scratch.step,
                      scratch.state,
                      p.rate,
                      nullptr};
        route.adjoint = {0,
                         width,
                         s.states,
                         s.channels - first,
                         true,
                         route.state_rows,
                         route.scan.x,
                         static_cast<const S*>(g.dy) + s.first_output(image, k) + first,
                         dx,
                         route.offset,
                         scratch.step,
                         scratch.slope,
                         scratch.decay,
                         scratch.carried,
                         scratch.weighted,
                         scratch.dz,
                         nullptr,
                         scratch.push,
                         p.rate,
                         p.A,
                         s.order ? p.skip : parameters.skip(block),
                         scratch.sums,
                         sums.A(share, k),
                         sums.bias(share, k),
                         sums.skip(share, k)};
        for (int64_t begin = 0; begin < s.length(); begin += route.walk.segment()) route.segment(begin, kind);
      }
    });

    constexpr int64_t kPiece = 4096;
    if (by_route) {
      const int64_t all = images * map_of_x, pieces = ceil_div(all, kPiece);
      vmamba::for_each(s.threads, pieces, kPiece / 8, 0, [&](int64_t piece, void*) {
        T* to = static_cast<T*>(g.dx) + from * map_of_x;
        for (int64_t k = 0; k < s.routes - 1; ++k) {
          const T* part = others.as<T>() + k * group * map_of_x;
          for (int64_t i = piece * kPiece; i < smaller(all, (piece + 1) * kPiece); ++i) to[i] += part[i];
        }
      });
    }
    if (blocks > 1) {
      const int64_t pieces = ceil_div(map, kPiece);
      vmamba::for_each(s.threads, images * pieces, kPiece / 8, 0, [&](int64_t index, void*) {
        const int64_t image = index / pieces, at = index % pieces * kPiece, count = smaller(kPiece, map - at);
        T* to = static_cast<T*>(g.ddbc) + (from + image) * map + at;
        const T* part = parts.as<T>() + image * blocks * map + at;
        for (int64_t i = 0; i < count; ++i) to[i] = part[i] + part[map + i];
        for (int64_t block = 2; block < blocks; ++block)
          for (int64_t i = 0; i < count; ++i) to[i] += part[block * map + i];
      });
    }
    vmamba::for_each(s.threads, blocks, sums.size() / 8, 0, [&](int64_t block, void*) {
      T* total = totals.as<T>() + block * sums.size();
      for (int64_t image = 0; image < images; ++image) {
        const T* share = shares.as<T>() + (image * blocks + block) * sums.size();
        for (int64_t i = 0; i < sums.size(); ++i) total[i] += share[i];
      }
    });
  }

  vmamba::for_each(s.threads, blocks, sums.size() / 8, 0, [&](int64_t block, void*) {
    const int64_t first = block * width, valid = smaller(width, s.channels - first);
    T* total = totals.as<T>() + block * sums.size();
    for (int64_t k = 0; k < s.routes; ++k)
      for (int64_t d = 0; d < valid; ++d) {
        const int64_t at = k * s.channels + first + d;
        for (int64_t r = 0; r < s.rank; ++r)
          static_cast<T*>(g.dweight)[at * s.rank + r] = sums.weight(total, k)[r * width + d];
        for (int64_t n = 0; n < s.states; ++n)
          static_cast<T*>(g.dA)[at * s.states + n] = sums.A(total, k)[n * width + d];
        static_cast<T*>(g.dbias)[at] = sums.bias(total, k)[d];
        static_cast<T*>(g.dD)[at] = sums.skip(total, k)[d];
      }
  });
}

}  // namespace
