// The one-dimensional scan of (B, D, L) sequences. Tiles are transposed into the layout of the image kernels, whose
// tile functions do the work. Every task is one sequence and one block of the channels that share b and c.
#pragma once

#include "adjoint_tile.hpp"
#include "parameters.hpp"
#include "scan_tile.hpp"

namespace {

using vmamba::SequenceGradients;
using vmamba::SequenceScan;

// `channels` rows of `count` tokens, `length` apart, into (count, w); bias (w) may be null.
template <class T, class S>
inline void tile_in(T* tile, int64_t width, const S* from, int64_t length, int64_t channels, int64_t count,
                    const T* bias) {
  constexpr int lanes = kLanes<T>;
  for (int64_t d = 0; d < width; ++d) {
    const T offset = bias ? bias[d] : T(0);
    for (int64_t t = 0; t < count; t += lanes) {
      T values[lanes] = {};
      const int64_t some = smaller(lanes, count - t);
      if (d < channels) store(values, load_some<T>(from + d * length + t, int(some)));
      for (int64_t i = 0; i < some; ++i) tile[(t + i) * width + d] = values[i] + offset;
    }
  }
}

template <class T>
inline void tile_out(T* to, int64_t length, const T* tile, int64_t width, int64_t channels, int64_t count) {
  for (int64_t d = 0; d < channels; ++d)
    for (int64_t t = 0; t < count; ++t) to[d * length + t] = tile[t * width + d];
}

// How the channels of a sequence scan are cut into blocks, none of which spans two groups.
struct SequenceBlocks {
  int64_t group, width, per_group, count;  // channels of a group, of a block; blocks of a group, of a sequence

  SequenceBlocks(const SequenceScan& s, int64_t block_width)
      : group(s.channels / s.groups),
        width(block_width),
        per_group(ceil_div(group, width)),
        count(per_group * s.groups) {}
  int64_t first(int64_t block) const { return block / per_group * group + block % per_group * width; }
  int64_t valid(int64_t block) const { return smaller(width, group - block % per_group * width); }
};

template <class T>
struct SequenceScratch {
  T *z, *x, *y, *dy, *slope, *decay, *carried, *weighted, *dz, *sums, *rows, *state, *push, *starts, *parameters;
  int64_t elements;

  SequenceScratch(T* at, const SequenceScan& s, int64_t width, bool backward) {
    T* begin = at;
    const auto take = [&at](int64_t n) {
      T* part = at;
      at += round_up(n, 16);
      return part;
    };
    const int64_t tile = kTile * width, only = backward ? tile : 0, states = s.states * width;
    z = take(tile);
    x = take(tile);
    y = take(tile);
    dy = take(only);
    slope = take(only);
    decay = take(only);
    carried = take(only);
    weighted = take(only);
    dz = take(only);
    sums = take(backward ? 2 * s.states * kTile * kLanes<T> : 0);
    rows = take(2 * s.states * kTile);
    state = take(states);
    push = take(backward ? states : 0);
    starts = take(backward ? states * ceil_div(s.length, kTile) : 0);
    parameters = take(BlockParameters<T>::size(width, 0, s.states));
    elements = at - begin;
  }
};

// One task: its operands and how a tile of them is brought in.
template <class T, class S>
struct SequenceTask {
  const SequenceScan& s;
  const SequenceScratch<T>& scratch;
  int64_t width, first, valid;  // of the block
  const S *u, *delta, *b, *c;   // first channel of the block, first state of the group
  BlockParameters<T> p;
  int64_t offset[kTile];
  const T* rows[kTile];

  SequenceTask(const SequenceScan& scan, const SequenceBlocks& blocks, int64_t index, const SequenceScratch<T>& memory)
      : s(scan), scratch(memory), width(blocks.width), p(memory.parameters, blocks.width, 0, scan.states) {
    const int64_t sequence = index / blocks.count, block = index % blocks.count;
    first = blocks.first(block);
    valid = blocks.valid(block);
    const int64_t channel = sequence * s.channels + first;
    const int64_t shared = (sequence * s.groups + block / blocks.per_group) * s.states * s.length;
    u = static_cast<const S*>(s.u) + channel * s.length;
    delta = static_cast<const S*>(s.delta) + channel * s.length;
    b = static_cast<const S*>(s.b) + shared;
    c = static_cast<const S*>(s.c) + shared;
    const T *bias = static_cast<const T*>(s.bias), *skip = static_cast<const T*>(s.D);
    fill<T>(p, nullptr, static_cast<const T*>(s.A) + first * s.states, bias ? bias + first : nullptr,
            skip ? skip + first : nullptr, valid, width, 0, s.states, Layout::kForward);
    for (int64_t t = 0; t < kTile; ++t) {
      offset[t] = t * width;
      rows[t] = scratch.rows + t * 2 * s.states;
    }
  }
  SequenceTask(const SequenceTask&) = delete;
  SequenceTask& operator=(const SequenceTask&) = delete;

  void open(int64_t at, int64_t count) {
    tile_in<T>(scratch.z, width, delta + at, s.length, valid, count, p.bias);
    tile_in<T>(scratch.x, width, u + at, s.length, valid, count, nullptr);
    tile_in<T>(scratch.rows, 2 * s.states, b + at, s.length, s.states, count, nullptr);
    T* second = scratch.rows + s.states;
    for (int64_t n = 0; n < s.states; ++n)
      for (int64_t t = 0; t < count; t += kLanes<T>) {
        T values[kLanes<T>];
        const int64_t some = smaller(kLanes<T>, count - t);
        store(values, load_some<T>(c + n * s.length + at + t, int(some)));
        for (int64_t i = 0; i < some; ++i) second[(t + i) * 2 * s.states + n] = values[i];
      }
  }

  ScanTile<T, T> scan_tile_of(int64_t count) const {
    return {count,     width,  s.states,  width,         s.softplus, rows,  scratch.x,
            scratch.y, offset, scratch.z, scratch.state, p.rate,     p.skip};
  }
};

template <class T, class S>
void sequence_forward(const SequenceScan& s, T* y, T* last) {
  const SequenceBlocks blocks(s, forward_block(s.batch * s.groups, s.channels / s.groups, s.threads));
  const int64_t bytes = SequenceScratch<T>(nullptr, s, blocks.width, false).elements * int64_t(sizeof(T));
  const int64_t work = s.length * blocks.width * s.states;
  vmamba::for_each(s.threads, s.batch * blocks.count, work, bytes, [&](int64_t index, void* memory) {
    const SequenceScratch<T> scratch(static_cast<T*>(memory), s, blocks.width, false);
    SequenceTask<T, S> task(s, blocks, index, scratch);
    const int64_t channel = index / blocks.count * s.channels + task.first, width = blocks.width;
    for (int64_t i = 0; i < s.states * width; ++i) scratch.state[i] = 0;
    for (int64_t at = 0; at < s.length; at += kTile) {
      const int64_t count = smaller(kTile, s.length - at);
      task.open(at, count);
      scan_tile<Output::kSet>(task.scan_tile_of(count));
      tile_out(y + channel * s.length + at, s.length, scratch.y, width, task.valid, count);
    }
    for (int64_t d = 0; d < task.valid; ++d)
      for (int64_t n = 0; n < s.states; ++n) last[(channel + d) * s.states + n] = scratch.state[n * width + d];
  });
}

template <class T, class S>
void sequence_backward(const SequenceScan& s, const SequenceGradients& g) {
  const SequenceBlocks blocks(s, smaller(kMaxBlock, round_up(s.channels / s.groups, kUnit)));
  const int64_t width = blocks.width, map = s.states * s.length;  // map: of one group's b
  const int64_t bytes = SequenceScratch<T>(nullptr, s, width, true).elements * int64_t(sizeof(T));
  // Partial sums: db and dc of every block, and (N + 2, w) of dA, dbias, dD of every block and sequence.
  const vmamba::Memory parts(s.batch * blocks.count * 2 * map * int64_t(sizeof(T)));
  const int64_t share_size = (s.states + 2) * width;
  const vmamba::Memory shares(s.batch * blocks.count * share_size * int64_t(sizeof(T)));

  const int64_t work = 3 * s.length * width * s.states;
  vmamba::for_each(s.threads, s.batch * blocks.count, work, bytes, [&](int64_t index, void* memory) {
    const SequenceScratch<T> scratch(static_cast<T*>(memory), s, width, true);
    SequenceTask<T, S> task(s, blocks, index, scratch);
    const int64_t channel = index / blocks.count * s.channels + task.first, state_size = s.states * width;
    const S* dy = static_cast<const S*>(g.dy) + channel * s.length;
    T* share = shares.as<T>() + index * share_size;
    T* part = parts.as<T>() + index * 2 * map;
    for (int64_t i = 0; i < share_size; ++i) share[i] = 0;

    T* start = scratch.starts;
    for (int64_t i = 0; i < state_size; ++i) scratch.state[i] = 0;
    for (int64_t at = 0; at < s.length; at += kTile, start += state_size) {
      for (int64_t i = 0; i < state_size; ++i) start[i] = scratch.state[i];
      if (at + kTile >= s.length) break;
      task.open(at, kTile);
      scan_tile<Output::kNone>(task.scan_tile_of(kTile));
    }

    const T* dlast = static_cast<const T*>(g.dlast) + channel * s.states;
    for (int64_t n = 0; n < s.states; ++n)
      for (int64_t d = 0; d < width; ++d) scratch.push[n * width + d] = d < task.valid ? dlast[d * s.states + n] : T(0);
    for (int64_t at = (s.length - 1) / kTile * kTile; at >= 0; at -= kTile, start -= state_size) {
      const int64_t count = smaller(kTile, s.length - at);
      task.open(at, count);
      tile_in<T>(scratch.dy, width, dy + at, s.length, task.valid, count, nullptr);
      for (int64_t i = 0; i < 2 * s.states * kTile * kLanes<T>; ++i) scratch.sums[i] = 0;
      adjoint_tile<Gradient::kSet>(AdjointTile<T, T>{count,
                                                     width,
                                                     s.states,
                                                     width,
                                                     s.softplus,
                                                     task.rows,
                                                     scratch.x,
                                                     scratch.dy,
                                                     scratch.y,
                                                     task.offset,
                                                     scratch.z,
                                                     scratch.slope,
                                                     scratch.decay,
                                                     scratch.carried,
                                                     scratch.weighted,
                                                     scratch.dz,
                                                     start,
                                                     scratch.push,
                                                     task.p.rate,
                                                     task.p.A,
                                                     task.p.skip,
                                                     scratch.sums,
                                                     share,
                                                     share + state_size,
                                                     share + state_size + width});
      tile_out(static_cast<T*>(g.du) + channel * s.length + at, s.length, scratch.y, width, task.valid, count);
      tile_out(static_cast<T*>(g.ddelta) + channel * s.length + at, s.length, scratch.dz, width, task.valid, count);
      for (int64_t n = 0; n < 2 * s.states; ++n)
        for (int64_t t = 0; t < count; ++t)
          part[n * s.length + at + t] = sum_lanes<T>(load(scratch.sums + (n * kTile + t) * kLanes<T>));
    }
  });

  vmamba::for_each(s.threads, s.batch * s.groups, map * blocks.per_group / 4, 0, [&](int64_t index, void*) {
    const T* part = parts.as<T>() + index * blocks.per_group * 2 * map;
    T *db = static_cast<T*>(g.db) + index * map, *dc = static_cast<T*>(g.dc) + index * map;
    for (int64_t i = 0; i < map; ++i) {
      T b = part[i], c = part[map + i];
      for (int64_t block = 1; block < blocks.per_group; ++block) {
        b += part[block * 2 * map + i];
        c += part[(block * 2 + 1) * map + i];
      }
      db[i] = b;
      dc[i] = c;
    }
  });
  vmamba::for_each(s.threads, blocks.count, s.batch * share_size / 8, 0, [&](int64_t block, void*) {
    T* total = shares.as<T>() + block * share_size;
    for (int64_t sequence = 1; sequence < s.batch; ++sequence)
      for (int64_t i = 0; i < share_size; ++i) total[i] += total[sequence * blocks.count * share_size + i];
    for (int64_t d = 0; d < blocks.valid(block); ++d) {
      const int64_t channel = blocks.first(block) + d;
      for (int64_t n = 0; n < s.states; ++n) static_cast<T*>(g.dA)[channel * s.states + n] = total[n * width + d];
      static_cast<T*>(g.dbias)[channel] = total[s.states * width + d];
      static_cast<T*>(g.dD)[channel] = total[(s.states + 1) * width + d];
    }
  });
}

}  // namespace
