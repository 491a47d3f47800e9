// What the bindings hand to the kernels: plain pointers and sizes, no types of PyTorch.
#pragma once

#include <stdint.h>

namespace vmamba {

// Storage of activations. The bits only: the kernels convert.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

enum class Storage : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

// One way through the grid, as `vmamba.ops.routes.Route`.
struct Route {
  bool columns;
  bool backward;
  bool per_line;
};

constexpr int kMaxRoutes = 8;

// Operands of `ss2d_scan` and, with an `order`, of `scan_routes`. Activations have the storage type, parameters and
// results the accumulation type (double for kFloat64, else float).
struct ImageScan {
  const void* x;       // (B, H, W, D)
  const void* dbc;     // (B, H, W, K, R + 2N), or without K where all routes share it
  const void* weight;  // (K, D, R)
  const void* A;       // (K, D, N)
  const void* D;       // (K, D)
  const void* bias;    // (K, D)
  int64_t batch, height, width, channels, rank, states;
  int routes;
  Route route[kMaxRoutes];
  Storage storage;
  int threads;

  // Of `scan_routes` alone. The tokens of every route by time, (K, L) or (B, K, L); any number of routes. A route may
  // visit a token never or several times, so the results, which are added to, must start as zeros.
  const int64_t* order;
  int64_t visits;    // L
  bool by_sample;    // the order is (B, K, L)
  bool shares_rows;  // dbc is without K
  bool by_route;     // y and dy are (B, K, H, W, D)

  int64_t tokens() const { return height * width; }
  int64_t length() const { return order ? visits : tokens(); }
  // Elements of dbc from one token to the next, and to the rows of an image and a route.
  int64_t row_stride() const { return (shares_rows ? 1 : routes) * row(); }
  int64_t first_row(int64_t image, int64_t k) const {
    return image * tokens() * row_stride() + (shares_rows ? 0 : k * row());
  }
  // Elements of y before those of an image and a route.
  int64_t first_output(int64_t image, int64_t k) const {
    return (by_route ? image * routes + k : image) * tokens() * channels;
  }
  int64_t row() const { return rank + 2 * states; }
};

struct ImageGradients {
  const void* dy;  // (B, H, W, D), storage type
  void* dx;        // (B, H, W, D)
  void* ddbc;      // (B, H, W, K, R + 2N)
  void* dweight;   // (K, D, R)
  void* dA;        // (K, D, N)
  void* dD;        // (K, D)
  void* dbias;     // (K, D)
};

// Operands of `selective_scan`; D and bias may be null.
struct SequenceScan {
  const void* u;      // (B, D, L)
  const void* delta;  // (B, D, L)
  const void* A;      // (D, N)
  const void* b;      // (B, G, N, L)
  const void* c;      // (B, G, N, L)
  const void* D;      // (D)
  const void* bias;   // (D)
  int64_t batch, channels, length, states, groups;
  bool softplus;
  Storage storage;
  int threads;
};

struct SequenceGradients {
  const void* dy;     // (B, D, L), storage type
  const void* dlast;  // (B, D, N)
  void* du;           // (B, D, L)
  void* ddelta;       // (B, D, L)
  void* dA;           // (D, N)
  void* db;           // (B, G, N, L)
  void* dc;           // (B, G, N, L)
  void* dD;           // (D)
  void* dbias;        // (D)
};

// SiLU of a depthwise 3×3 convolution with zeros around the map.
struct DepthwiseSilu {
  const float* x;       // (B, H, W, D)
  const float* weight;  // (9, D)
  const float* bias;    // (D)
  int64_t batch, height, width, channels;
  int threads;
};

// GELU of rows plus a bias.
struct BiasGelu {
  const float* x;     // (rows, C)
  const float* bias;  // (C)
  int64_t rows, channels;
  int threads;
};

// The entry points of one instruction set.
struct Kernels {
  void (*image_forward)(const ImageScan&, void* y);
  void (*image_backward)(const ImageScan&, const ImageGradients&);
  void (*sequence_forward)(const SequenceScan&, void* y, void* last);
  void (*sequence_backward)(const SequenceScan&, const SequenceGradients&);
  void (*depthwise_silu)(const DepthwiseSilu&, float* y);
  void (*bias_gelu)(const BiasGelu&, float* y);
};

}  // namespace vmamba
