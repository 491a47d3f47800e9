// y = Σ_k scan_k(x): every task is one image and one block of channels, through all routes.
#pragma once

#include "image_chain.hpp"
#include "projection.hpp"
#include "scan_tile.hpp"

namespace {

template <class T, class S>
void image_forward(const ImageScan& s, T* y) {
  // More threads than blocks: they share the blocks.
  if (!s.order && s.batch * ceil_div(s.channels, kUnit) < s.threads) return image_forward_chained<T, S>(s, y);
  const int64_t width = forward_block(s.batch, s.channels, s.threads), blocks = ceil_div(s.channels, width);
  const Layout layout = forward_layout<S>();
  const ImageParameters<T> parameters(s, width, layout);

  const int64_t row_buffer = row_buffer_stride<T>(s.row()) * kTile;
  const int64_t scratch = (kTile * width + s.states * width + row_buffer) * int64_t(sizeof(T));
  const int64_t work = s.length() * s.routes * width * s.states;
  vmamba::for_each(s.threads, s.batch * blocks, work, scratch, [&](int64_t index, void* memory) {
    const int64_t image = index / blocks, block = index % blocks, first = block * width;
    T* step = static_cast<T*>(memory);
    T* state = step + kTile * width;
    T* buffer = state + s.states * width;
    int64_t tokens[kTile], offset[kTile];
    const T* state_rows[kTile];

    for (int64_t k = 0; k < s.routes; ++k) {
      const BlockParameters<T> p = parameters(block, k);
      const S* dbc = static_cast<const S*>(s.dbc) + s.first_row(image, k);
      const Walk walk(s, image, k);
      const int64_t segment = walk.segment(), length = walk.tile();
      ScanTile<T, S> tile;
      tile.width = width;
      tile.states = s.states;
      tile.valid = s.channels - first;
      tile.softplus = true;
      tile.rows = state_rows;
      tile.x = static_cast<const S*>(s.x) + image * s.tokens() * s.channels + first;
      tile.y = y + s.first_output(image, k) + first;
      tile.offset = offset;
      tile.step = step;
      tile.state = state;
      tile.rate = p.rate;
      tile.skip = s.order ? p.skip : parameters.skip(block);
      for (int64_t begin = 0; begin < walk.length(); begin += segment) {
        for (int64_t i = 0; i < s.states * width; ++i) state[i] = 0;
        for (int64_t at = begin; at < begin + segment; at += length) {
          tile.count = smaller(length, begin + segment - at);
          walk.tokens(at, tile.count, tokens);
          for (int64_t t = 0; t < tile.count; ++t) offset[t] = tokens[t] * s.channels;
          project_tile(s, dbc, tokens, tile.count, p, layout, width, buffer, step, state_rows);
          if (s.order)
            scan_tile<Output::kVisit>(tile);
          else if (k == 0)
            scan_tile<Output::kSet>(tile);
          else
            scan_tile<Output::kAdd>(tile);
        }
      }
    }
  });
}

}  // namespace
