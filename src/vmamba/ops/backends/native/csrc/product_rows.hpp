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
template <class X>
struct MatrixRows {
  const X* x;
  int64_t inputs;
  const X* operator()(int64_t row, float*) const { return x + row * inputs; }
};

// Patches of a map, a row for each pixel of the result, ordered (k, k, channels), with zeros around the map.
class PatchRows {
 public:
  explicit PatchRows(const PackedConvolution& convolution) : c(convolution), size(c.kernel * c.kernel * c.channels) {
    if (c.by_channel == 1 || size > kFew) return;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t at = i / c.channels;
      offsets[i] = at / c.kernel * c.by_row + at % c.kernel * c.by_column + i % c.channels * c.by_channel;
    }
  }

  const float* operator()(int64_t row, float* to) const {
    const int64_t across = c.out_width(), down = c.out_height(), k = c.kernel;
    const int64_t left = row % across * c.stride - c.padding, top = row / across % down * c.stride - c.padding;
    const float* image = c.x + row / across / down * c.by_image;
    const bool inside = top >= 0 && left >= 0 && top + k <= c.height && left + k <= c.width;
    if (inside && c.by_channel != 1 && size <= kFew) {
      const float* corner = image + top * c.by_row + left * c.by_column;
      for (int64_t i = 0; i < size; ++i) to[i] = corner[offsets[i]];
      return to;
    }
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
    return to - size;
  }

 private:
  static constexpr int64_t kFew = 64;  // elements of a patch whose places are looked up: those of images
  const PackedConvolution& c;
  int64_t size, offsets[kFew] = {};
};

VMAMBA_INLINE float total(f32v v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  return sum_lanes<float>(v);
#endif
}

// Σ value(x) of a row. Four chains of additions hide each other's latency.
template <class Value>
VMAMBA_INLINE float sum_row(const float* row, int64_t inputs, const Value& value) {
  constexpr int lanes = kLanes<float>;
  f32v sums[4] = {};
  float rest = 0;
  int64_t at = 0;
  for (; at + 4 * lanes <= inputs; at += 4 * lanes)
    for (int j = 0; j < 4; ++j) sums[j] += value(load(row + at + j * lanes));
  for (; at + lanes <= inputs; at += lanes) sums[0] += value(load(row + at));
  for (; at < inputs; ++at) rest += value(row[at]);
  return total((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

// What normalises a row: (x - start) * scale.
VMAMBA_INLINE RowScale moments(const float* row, int64_t inputs, float eps) {
  const float mean = sum_row(row, inputs, [](auto x) { return x; }) / float(inputs);
  const float squares = sum_row(row, inputs, [mean](auto x) { return (x - mean) * (x - mean); });
  return {1 / __builtin_sqrtf(squares / float(inputs) + eps), mean};
}

// Rows first … first + count - 1 as words, normalised unless eps is negative.
template <class Kind, class Source>
void words_of(const Source& source, int64_t first, int64_t count, int64_t inputs, float eps, float* buffer,
              uint32_t* words, int64_t stride, RowScale* scales) {
  for (int64_t m = 0; m < count; ++m) {  // by themselves, so that several rows are under way at once
    scales[m] = {};
    if constexpr (std::is_same<decltype(source(first, buffer)), const float*>::value)
      if (eps >= 0) scales[m] = moments(source(first + m, buffer), inputs, eps);
  }
  for (int64_t m = 0; m < count; ++m)
    scales[m] = Kind::convert(source(first + m, buffer), scales[m].start, scales[m].scale, inputs, words + m * stride);
}

// How rows and panels are divided among threads: whole rows, or where there are few of them also columns.
struct Division {
  int64_t blocks, height, groups;

  Division(int64_t rows, int64_t bytes_of_row, int64_t panels, int threads) {
    const int64_t highest = round_up(smaller(8 * kTileRows, 1 + kBlockBytes / bytes_of_row), kTileRows);
    blocks = ceil_div(rows, highest);
    groups = 1;
    if (blocks >= threads || rows >= 2 * kTileRows * threads)
      blocks = round_up(blocks, threads);
    else
      groups = smaller(panels, threads);
    height = ceil_div(rows, blocks < 1 ? 1 : blocks);
    blocks = ceil_div(rows, height < 1 ? 1 : height);
  }
};

// `finish(first, count)` is called for rows of which all columns are there.
template <class Kind, class Source, class X, class Y, class Finish>
void linear_of(const Source& source, const PackedLinear<X, Y>& l, const Finish& finish) {
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
    const Results<Y> to{l.y + first * p.outputs, p.outputs, l.residual ? l.residual + first * p.outputs : nullptr,
                        p.outputs, l.gelu};
    multiply<Kind>(words, stride, count, scales, p, panels * group / d.groups, panels * (group + 1) / d.groups, to);
    if (d.groups == 1) finish(first, count);
  });
  if (d.groups > 1) finish(0, l.rows);
}

template <class Kind, class X, class Y>
void linear(const PackedLinear<X, Y>& l) {
  linear_of<Kind>(MatrixRows<X>{l.x, l.layer.inputs}, l, [](int64_t, int64_t) {});
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
    linear<Kind>(PackedLinear<>{fc1, y, rows, eps, nullptr, hidden.as<float>(), true, threads});
    return linear<Kind>(PackedLinear<>{fc2, hidden.as<float>(), rows, -1, y, y, false, threads});
  }
  const int64_t scratch = d.height * (words_of_row * 4 + int64_t(sizeof(RowScale)));
  vmamba::for_each(threads, d.blocks, d.height * in.depth * in.columns / 8, scratch, [&](int64_t index, void* memory) {
    const int64_t first = index * d.height, count = smaller(d.height, rows - first);
    float* rows_of_block = y + first * in.inputs;
    uint32_t* words = static_cast<uint32_t*>(memory);
    uint32_t* hidden = words + d.height * stride;
    float* floats = reinterpret_cast<float*>(hidden + d.height * hidden_stride);
    RowScale* scales = reinterpret_cast<RowScale*>(hidden + d.height * (words_of_row - stride));
    words_of<Kind>(MatrixRows<float>{rows_of_block, in.inputs}, 0, count, in.inputs, eps, nullptr, words, stride,
                   scales);
    const int64_t results_stride = direct ? hidden_stride * Kind::kPerWord : wide;
    S* results = direct ? reinterpret_cast<S*>(hidden) : reinterpret_cast<S*>(floats);
    multiply<Kind>(words, stride, count, scales, in, 0, in.count(),
                   Results<S>{results, results_stride, nullptr, 0, true});
    if constexpr (direct) {
      for (int64_t m = 0; m < count; ++m)  // what fills up the last word of a row
        for (int64_t i = out.inputs; i < out.depth * Kind::kPerWord; ++i) results[m * results_stride + i] = {};
    } else {
      words_of<Kind>(MatrixRows<float>{floats, wide}, 0, count, out.inputs, -1, nullptr, hidden, hidden_stride, scales);
    }
    const Results<float> to{rows_of_block, out.outputs, rows_of_block, out.outputs, false};
    multiply<Kind>(hidden, hidden_stride, count, scales, out, 0, out.count(), to);
  });
}

// LayerNorm and GELU of rows, in place.
inline void normalise_rows(float* y, int64_t rows, int64_t channels, const float* weight, const float* bias, float eps,
                           bool gelu) {
  constexpr int64_t block = 16;
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t end = smaller(rows, first + block);
    RowScale scales[block];
    for (int64_t m = first; m < end; ++m) scales[m - first] = moments(y + m * channels, channels, eps);
    for (int64_t m = first; m < end; ++m) {
      float* row = y + m * channels;
      const RowScale of_row = scales[m - first];
      for_groups<float>(round_up(channels, kLanes<float>), [&](auto group, int64_t at) {
        constexpr int M = decltype(group)::vectors;
        f32v v[M], scale[M], shift[M];
        load_row<float>(v, row + at, channels - at);
        load_row<float>(scale, weight + at, channels - at);
        load_row<float>(shift, bias + at, channels - at);
        for (int j = 0; j < M; ++j) v[j] = fma((v[j] - of_row.start) * of_row.scale, scale[j], shift[j]);
        if (gelu) gelu_each(v);
        store_row<float>(row + at, v, channels - at);
      });
    }
  }
}

template <class Kind>
void convolution(const PackedConvolution& c) {
  const int64_t rows = c.batch * c.out_height() * c.out_width(), channels = c.layer.outputs;
  const PackedLinear<> l{c.layer, nullptr, rows, -1, nullptr, c.y, c.gelu && !c.norm_weight, c.threads};
  linear_of<Kind>(PatchRows(c), l, [&](int64_t first, int64_t count) {
    if (c.norm_weight)
      normalise_rows(c.y + first * channels, count, channels, c.norm_weight, c.norm_bias, c.eps, c.gelu);
  });
}

}  // namespace
