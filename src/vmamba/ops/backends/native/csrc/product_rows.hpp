// Products of all rows on all threads: linear layers, the MLP, convolutions.
#pragma once

#include "parallel.hpp"
#include "product_tile.hpp"

namespace {

using vmamba::PackedConvolution;
using vmamba::PackedLinear;

constexpr int64_t kBlockBytes = 256 * 1024;  // of a block of rows: it stays in the second-level cache

// Words from a row to the next: rows lie in different sets of the first-level cache.
inline int64_t word_stride(int64_t depth) { return round_up(depth, 16) + 16; }

// Rows of a matrix.
struct MatrixRows {
  const float* x;
  int64_t inputs;
  const float* operator()(int64_t row, float*) const { return x + row * inputs; }
};

// Patches of a map, a row for each pixel of the result, ordered (k, k, channels), with zeros around the map.
struct PatchRows {
  const PackedConvolution& c;
  const float* operator()(int64_t row, float* to) const {
    const int64_t across = c.out_width(), down = c.out_height(), k = c.kernel;
    const int64_t left = row % across * c.stride - c.padding, top = row / across % down * c.stride - c.padding;
    const float* image = c.x + row / across / down * c.by_image;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j, to += c.channels) {
        const int64_t y = top + i, x = left + j;
        if (y < 0 || y >= c.height || x < 0 || x >= c.width) {
          for (int64_t n = 0; n < c.channels; ++n) to[n] = 0;
        } else if (const float* pixel = image + y * c.by_row + x * c.by_column; c.by_channel == 1) {
          memcpy(to, pixel, size_t(c.channels) * sizeof(float));
        } else {
          for (int64_t n = 0; n < c.channels; ++n) to[n] = pixel[n * c.by_channel];
        }
      }
    return to - k * k * c.channels;
  }
};

VMAMBA_INLINE float total(f32v v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  return sum_lanes<float>(v);
#endif
}

VMAMBA_INLINE void moments(const float* row, int64_t inputs, float eps, float& mean, float& factor) {
  f32v sum = {};
  float rest = 0;
  int64_t at = 0;
  for (; at + kLanes<float> <= inputs; at += kLanes<float>) sum += load(row + at);
  for (; at < inputs; ++at) rest += row[at];
  mean = (total(sum) + rest) / float(inputs);
  f32v squares = {};
  rest = 0;
  for (at = 0; at + kLanes<float> <= inputs; at += kLanes<float>) {
    const f32v d = load(row + at) - mean;
    squares = fma(d, d, squares);
  }
  for (; at < inputs; ++at) rest += (row[at] - mean) * (row[at] - mean);
  factor = 1 / __builtin_sqrtf((total(squares) + rest) / float(inputs) + eps);
}

// Rows first … first + count - 1 as words, normalised unless eps is negative.
template <class Kind, class Source>
void words_of(const Source& source, int64_t first, int64_t count, int64_t inputs, float eps, float* buffer,
              uint32_t* words, int64_t stride, RowScale* scales) {
  for (int64_t m = 0; m < count; ++m) {
    const float* row = source(first + m, buffer);
    float mean = 0, factor = 1;
    if (eps >= 0) moments(row, inputs, eps, mean, factor);
    scales[m] = Kind::convert(row, mean, factor, inputs, words + m * stride);
  }
}

// How rows and panels are divided among threads: whole rows, or where there are few of them also columns.
struct Division {
  int64_t blocks, height, groups;

  Division(int64_t rows, int64_t bytes_of_row, int64_t panels, int threads) {
    const int64_t highest = round_up(smaller(8 * kTileRows, 1 + kBlockBytes / bytes_of_row), kTileRows);
    blocks = ceil_div(rows, highest);
    groups = 1;
    if (blocks < 4 * threads) {
      if (rows >= 2 * kTileRows * threads)
        blocks = round_up(blocks, threads);
      else
        groups = smaller(panels, threads);
    }
    height = ceil_div(rows, blocks < 1 ? 1 : blocks);
    blocks = ceil_div(rows, height < 1 ? 1 : height);
  }
};

template <class Kind, class Source>
void linear_of(const Source& source, const PackedLinear& l) {
  const Panels p = Panels::of(l.layer, Kind{});
  const int64_t stride = word_stride(p.depth);
  const Division d(l.rows, stride * 4, p.count(), l.threads);
  const int64_t scratch = d.height * (stride * 4 + int64_t(sizeof(RowScale))) + word_stride(p.inputs) * 4;
  const int64_t work = d.height * p.depth * p.columns / d.groups / 16;
  vmamba::for_each(l.threads, d.blocks * d.groups, work, scratch, [&](int64_t index, void* memory) {
    const int64_t first = index / d.groups * d.height, count = smaller(d.height, l.rows - first);
    const int64_t group = index % d.groups, panels = p.count();
    uint32_t* words = static_cast<uint32_t*>(memory);
    float* buffer = reinterpret_cast<float*>(words + d.height * stride);
    RowScale* scales = reinterpret_cast<RowScale*>(buffer + word_stride(p.inputs));
    words_of<Kind>(source, first, count, p.inputs, l.eps, buffer, words, stride, scales);
    const Results<float> to{l.y + first * p.outputs, p.outputs, l.residual ? l.residual + first * p.outputs : nullptr,
                            p.outputs, l.gelu};
    multiply<Kind>(words, stride, count, scales, p, panels * group / d.groups, panels * (group + 1) / d.groups, to);
  });
}

template <class Kind>
void linear(const PackedLinear& l) {
  linear_of<Kind>(MatrixRows{l.x, l.layer.inputs}, l);
}

// y + fc2(gelu(fc1(normalise(y)))), in place. The hidden rows of a block stay in the second-level cache.
template <class Kind>
void mlp_in_place(const PackedLayer& fc1, const PackedLayer& fc2, float eps, float* y, int64_t rows, int threads) {
  using S = typename Kind::Stored;
  const Panels in = Panels::of(fc1, Kind{}), out = Panels::of(fc2, Kind{});
  const int64_t stride = word_stride(in.depth), hidden_stride = word_stride(out.depth);
  const int64_t wide = word_stride(out.inputs);  // of hidden rows in float32, where they are converted afterwards
  constexpr bool direct = std::is_same<Kind, Float32>::value || std::is_same<Kind, BFloat16>::value;
  const int64_t words_of_row = stride + hidden_stride + (direct ? 0 : wide);
  const Division d(rows, words_of_row * 2, out.count(), threads);
  if (d.groups > 1) {
    const vmamba::Memory hidden(rows * out.inputs * int64_t(sizeof(float)));
    linear<Kind>({fc1, y, rows, eps, nullptr, hidden.as<float>(), true, threads});
    return linear<Kind>({fc2, hidden.as<float>(), rows, -1, y, y, false, threads});
  }
  const int64_t scratch = d.height * (words_of_row * 4 + int64_t(sizeof(RowScale)));
  vmamba::for_each(threads, d.blocks, d.height * in.depth * in.columns / 8, scratch, [&](int64_t index, void* memory) {
    const int64_t first = index * d.height, count = smaller(d.height, rows - first);
    float* rows_of_block = y + first * in.inputs;
    uint32_t* words = static_cast<uint32_t*>(memory);
    uint32_t* hidden = words + d.height * stride;
    float* floats = reinterpret_cast<float*>(hidden + d.height * hidden_stride);
    RowScale* scales = reinterpret_cast<RowScale*>(hidden + d.height * (words_of_row - stride));
    words_of<Kind>(MatrixRows{rows_of_block, in.inputs}, 0, count, in.inputs, eps, nullptr, words, stride, scales);
    const int64_t results_stride = direct ? hidden_stride * Kind::kPerWord : wide;
    S* results = direct ? reinterpret_cast<S*>(hidden) : reinterpret_cast<S*>(floats);
    multiply<Kind>(words, stride, count, scales, in, 0, in.count(),
                   Results<S>{results, results_stride, nullptr, 0, true});
    if constexpr (direct) {
      for (int64_t m = 0; m < count; ++m)  // what fills up the last word of a row
        for (int64_t i = out.inputs; i < out.depth * Kind::kPerWord; ++i) results[m * results_stride + i] = {};
    } else {
      words_of<Kind>(MatrixRows{floats, wide}, 0, count, out.inputs, -1, nullptr, hidden, hidden_stride, scales);
    }
    const Results<float> to{rows_of_block, out.outputs, rows_of_block, out.outputs, false};
    multiply<Kind>(hidden, hidden_stride, count, scales, out, 0, out.count(), to);
  });
}

// LayerNorm and GELU of rows, in place.
inline void normalise_rows(float* y, int64_t rows, int64_t channels, const float* weight, const float* bias, float eps,
                           bool gelu, int threads) {
  constexpr int64_t block = 16;
  vmamba::for_each(threads, ceil_div(rows, block), block * channels / 4, 0, [&](int64_t index, void*) {
    for (int64_t m = index * block; m < smaller(rows, (index + 1) * block); ++m) {
      float* row = y + m * channels;
      float mean = 0, factor = 1;
      if (weight) moments(row, channels, eps, mean, factor);
      for_groups<float>(round_up(channels, kLanes<float>), [&](auto group, int64_t at) {
        f32v v[decltype(group)::vectors], scale[decltype(group)::vectors], shift[decltype(group)::vectors];
        load_row<float>(v, row + at, channels - at);
        if (weight) {
          load_row<float>(scale, weight + at, channels - at);
          load_row<float>(shift, bias + at, channels - at);
          for (int j = 0; j < decltype(group)::vectors; ++j) v[j] = fma((v[j] - mean) * factor, scale[j], shift[j]);
        }
        if (gelu) gelu_each(v);
        store_row<float>(row + at, v, channels - at);
      });
    }
  });
}

template <class Kind>
void convolution(const PackedConvolution& c) {
  const int64_t rows = c.batch * c.out_height() * c.out_width();
  const bool gelu_at_once = c.gelu && !c.norm_weight;
  linear_of<Kind>(PatchRows{c}, {c.layer, nullptr, rows, -1, nullptr, c.y, gelu_at_once, c.threads});
  if (c.norm_weight) normalise_rows(c.y, rows, c.layer.outputs, c.norm_weight, c.norm_bias, c.eps, c.gelu, c.threads);
}

}  // namespace
