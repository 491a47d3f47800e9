// The parameters of one route and one block of channels, laid out for vectors.
#pragma once

#include "parallel.hpp"
#include "product_kinds.hpp"
#include "tiles.hpp"

namespace {

// How the weight of the projection is needed: by input, so in pairs of inputs in bfloat16, or also by channel.
enum class Layout { kForward, kForwardInPairs, kBackward };

// Padded with zeros to the block's width w: a padding channel has Δ = log 2, no input and no output.
template <class T>
struct BlockParameters {
  T* weight;  // (R, w)
  T* bias;    // (w)
  T* skip;    // (w)
  T* rate;    // (N, w)  A / log 2, so that decay = 2^(Δ · rate)
  T* A;       // (N, w)
  union {
    T* by_rank;       // (w, R padded to whole vectors): the weight as the backward pass of the projection needs it
    uint32_t* pairs;  // (R / 2 rounded up, w)
  };

  static int64_t padded_rank(int64_t rank) { return round_up(rank, kLanes<T>); }
  static int64_t size(int64_t width, int64_t rank, int64_t states) {
    return (rank + 2 + 2 * states + padded_rank(rank)) * width;
  }

  BlockParameters(T* at, int64_t width, int64_t rank, int64_t states)
      : weight(at),
        bias(weight + rank * width),
        skip(bias + width),
        rate(skip + width),
        A(rate + states * width),
        by_rank(A + states * width) {}
};

// From the operands of `valid` channels: weight (d, R), A (d, N), bias and skip (d), each of which may be null.
template <class T>
inline void fill(const BlockParameters<T>& p, const T* weight, const T* A, const T* bias, const T* skip, int64_t valid,
                 int64_t width, int64_t rank, int64_t states, Layout layout) {
  const T log2_e = T(1.4426950408889634);
  for (int64_t r = 0; r < rank; ++r) {
    T* row = p.weight + r * width;
    for (int64_t d = 0; d < valid; ++d) row[d] = weight[d * rank + r];
    for (int64_t d = valid; d < width; ++d) row[d] = 0;
  }
  for (int64_t n = 0; n < states; ++n)
    for (int64_t d = 0; d < width; ++d) {
      p.A[n * width + d] = d < valid ? A[d * states + n] : T(0);
      p.rate[n * width + d] = p.A[n * width + d] * log2_e;
    }
  for (int64_t d = 0; d < width; ++d) {
    p.bias[d] = d < valid && bias ? bias[d] : T(0);
    p.skip[d] = d < valid && skip ? skip[d] : T(0);
  }
  if constexpr (std::is_same<T, float>::value) {
    if (layout == Layout::kForwardInPairs)
      for (int64_t r = 0; r < rank; r += 2)
        for (int64_t d = 0; d < width; ++d) {
          const float pair[2] = {p.weight[r * width + d], r + 1 < rank ? p.weight[(r + 1) * width + d] : 0.0f};
          p.pairs[r / 2 * width + d] = BFloat16::word(pair, 0);
        }
  }
  if (layout != Layout::kBackward) return;
  const int64_t padded = BlockParameters<T>::padded_rank(rank);
  for (int64_t d = 0; d < width; ++d)
    for (int64_t r = 0; r < padded; ++r)
      p.by_rank[d * padded + r] = d < valid && r < rank ? weight[d * rank + r] : T(0);
}

// All blocks and routes of an image scan.
template <class T>
class ImageParameters {
 public:
  ImageParameters(const ImageScan& s, int64_t width, Layout layout)
      : routes_(s.routes),
        width_(width),
        rank_(s.rank),
        states_(s.states),
        size_(BlockParameters<T>::size(width, s.rank, s.states)),
        memory_((ceil_div(s.channels, width) * (s.routes * size_ + width)) * int64_t(sizeof(T))) {
    const int64_t blocks = ceil_div(s.channels, width);
    skips_ = memory_.template as<T>() + blocks * s.routes * size_;
    vmamba::for_each(s.threads, blocks, s.routes * size_ / 8, 0, [&](int64_t block, void*) {
      const int64_t first = block * width;
      T* skip = skips_ + block * width;
      for (int64_t d = 0; d < width; ++d) skip[d] = 0;
      for (int64_t k = 0; k < s.routes; ++k) {
        const int64_t at = k * s.channels + first;
        const BlockParameters<T> p = (*this)(block, k);
        fill(p, static_cast<const T*>(s.weight) + at * s.rank, static_cast<const T*>(s.A) + at * s.states,
             static_cast<const T*>(s.bias) + at, static_cast<const T*>(s.D) + at, smaller(width, s.channels - first),
             width, s.rank, s.states, layout);
        for (int64_t d = 0; d < width; ++d) skip[d] += p.skip[d];
      }
    });
  }

  BlockParameters<T> operator()(int64_t block, int64_t route) const {
    return {memory_.template as<T>() + (block * routes_ + route) * size_, width_, rank_, states_};
  }
  // Σ_k D_k of a block.
  const T* skip(int64_t block) const { return skips_ + block * width_; }

 private:
  int64_t routes_, width_, rank_, states_, size_;
  vmamba::Memory memory_;
  T* skips_;
};

}  // namespace
