// The forward scan of few channels on many threads: tiles of one block run on different threads.
//
// Nearly all the work of a tile (projection, softplus, exp) does not need the state before it. A thread takes the next
// tile of a block, does that work, waits until the state has arrived, runs the short recurrence and hands the state on.
// The same operations in the same order as in `image_forward.hpp`, so the result is the same to the last bit.
#pragma once

#include "projection.hpp"
#include "scan_tile.hpp"

namespace {

// Δ and the decays (N, count, w) of a tile.
template <class T, class S>
inline void prepare_tile(const ScanTile<T, S>& tile, T* decays) {
  for_groups<T>(tile.width, [&](auto group, int64_t at) {
    constexpr int M = decltype(group)::vectors, lanes = kLanes<T>;
    for (int64_t t = 0; t < tile.count; ++t) {
      Vec<T> step[M], decay[M];
      T* steps = tile.step + t * tile.width + at;
      for (int j = 0; j < M; ++j) step[j] = load(steps + j * lanes);
      softplus_for<Output::kSet, S>(step);
      for (int j = 0; j < M; ++j) store(steps + j * lanes, step[j]);
      for (int64_t n = 0; n < tile.states; ++n) {
        for (int j = 0; j < M; ++j) decay[j] = step[j] * load(tile.rate + n * tile.width + at + j * lanes);
        exp2_for<Output::kSet, S>(decay);
        T* to = decays + (n * tile.count + t) * tile.width + at;
        for (int j = 0; j < M; ++j) store(to + j * lanes, decay[j]);
      }
    }
  });
}

// The recurrence and the output of a prepared tile.
template <class T, class S>
inline void finish_tile(const ScanTile<T, S>& tile, const T* decays, bool set) {
  for_groups<T>(tile.width, [&](auto group, int64_t at) {
    constexpr int M = decltype(group)::vectors, lanes = kLanes<T>;
    for (int64_t n = 0; n < tile.states; ++n) {
      T* state = tile.state + n * tile.width + at;
      Vec<T> h[M];
      for (int j = 0; j < M; ++j) h[j] = load(state + j * lanes);
      for (int64_t t = 0; t < tile.count; ++t) {
        Vec<T> x[M], y[M];
        const T* step = tile.step + t * tile.width + at;
        const T* decay = decays + (n * tile.count + t) * tile.width + at;
        T* to = tile.y + tile.offset[t] + at;
        load_row<T>(x, tile.x + tile.offset[t] + at, tile.valid - at);
        const auto b = splat<Vec<T>>(tile.rows[t][n]), c = splat<Vec<T>>(tile.rows[t][tile.states + n]);
        for (int j = 0; j < M; ++j) h[j] = fma(load(decay + j * lanes), h[j], (load(step + j * lanes) * x[j]) * b);
        if (set && n == 0) {
          for (int j = 0; j < M; ++j) y[j] = load(tile.skip + at + j * lanes) * x[j];
        } else {
          load_row<T>(y, to, tile.valid - at);
        }
        for (int j = 0; j < M; ++j) y[j] = fma(c, h[j], y[j]);
        store_row<T>(to, y, tile.valid - at);
      }
      for (int j = 0; j < M; ++j) store(state + j * lanes, h[j]);
    }
  });
}

template <class T, class S>
void image_forward_chained(const ImageScan& s, T* y) {
  const int64_t width = kUnit, blocks = ceil_div(s.channels, width), chains = s.batch * blocks;
  const Layout layout = forward_layout<S>();
  const ImageParameters<T> parameters(s, width, layout);
  const int64_t state_size = s.states * width, row_buffer = row_buffer_stride<T>(s.row()) * kTile;
  const vmamba::Memory states(chains * state_size * int64_t(sizeof(T)));
  const vmamba::Memory counters(chains * int64_t(sizeof(int64_t)));
  for (int64_t i = 0; i < chains; ++i) counters.as<int64_t>()[i] = 0;

  // The tiles of a chain, route after route: those of route k end before position ends[k].
  int64_t ends[vmamba::kMaxRoutes], tiles = 0;
  for (int64_t k = 0; k < s.routes; ++k) {
    const Walk walk(s, 0, k);
    ends[k] = tiles += walk.length() / walk.segment() * walk.tiles_of_segment();
  }

  const int64_t scratch = (kTile * (width + state_size) + row_buffer) * int64_t(sizeof(T));
  vmamba::for_each(s.threads, tiles * chains, kTile * width * s.states, scratch, [&](int64_t index, void* memory) {
    const int64_t chain = index % chains, position = index / chains;
    const int64_t image = chain / blocks, block = chain % blocks, first = block * width;
    int64_t k = 0;
    while (position >= ends[k]) ++k;
    const BlockParameters<T> p = parameters(block, k);
    const Walk walk(s, image, k);
    const int64_t tile_of_route = position - (k > 0 ? ends[k - 1] : 0);
    const int64_t segment = tile_of_route / walk.tiles_of_segment();
    const int64_t of_segment = tile_of_route % walk.tiles_of_segment();
    const int64_t begin = of_segment * walk.tile();
    T* step = static_cast<T*>(memory);
    T* decays = step + kTile * width;
    T* state = states.as<T>() + chain * state_size;
    int64_t tokens[kTile], offset[kTile];
    const T* state_rows[kTile];

    const int64_t pixels = image * s.tokens() * s.channels + first;
    const ScanTile<T, S> tile{smaller(walk.tile(), walk.segment() - begin),
                              width,
                              s.states,
                              s.channels - first,
                              true,
                              state_rows,
                              static_cast<const S*>(s.x) + pixels,
                              y + pixels,
                              offset,
                              step,
                              state,
                              p.rate,
                              parameters.skip(block)};
    walk.tokens(segment * walk.segment() + begin, tile.count, tokens);
    for (int64_t t = 0; t < tile.count; ++t) offset[t] = tokens[t] * s.channels;
    project_tile(s, static_cast<const S*>(s.dbc) + s.first_row(image, k), tokens, tile.count, p, layout, width,
                 decays + kTile * state_size, step, state_rows);
    prepare_tile(tile, decays);

    int64_t* counter = counters.as<int64_t>() + chain;
    vmamba::wait_for(counter, position);
    if (of_segment == 0)
      for (int64_t i = 0; i < state_size; ++i) state[i] = 0;
    finish_tile(tile, decays, k == 0);
    vmamba::announce(counter, position + 1);
  });
}

}  // namespace
