// What the bindings hand to the kernels of the frozen layers: plain pointers and sizes, no types of PyTorch.
#pragma once

#include "arguments.hpp"

namespace vmamba {

// How weights are stored and multiplied. Activations are float32 between layers.
enum class Precision : int { kFloat32, kBFloat16, kInt8 };

// Weights as `Products::pack` leaves them.
struct PackedLayer {
  const void* memory;
  int64_t inputs, outputs;
  Precision precision;
};

// y = layer(normalise(x)) of every row; then GELU; then plus the residual. X and Y are float or bfloat16.
template <class X = float, class Y = float>
struct PackedLinear {
  PackedLayer layer;
  const X* x;  // (rows, inputs)
  int64_t rows;
  float eps;              // of the normalisation; negative for none
  const float* residual;  // (rows, outputs) or null
  Y* y;                   // (rows, outputs)
  bool gelu;
  int threads;
};

// A dense convolution of a map with any strides, then LayerNorm and GELU. Weights are packed as (outputs, k, k,
// channels).
struct PackedConvolution {
  PackedLayer layer;
  const float* x;  // (B, C, H, W) at these strides
  int64_t batch, channels, height, width;
  int64_t by_image, by_channel, by_row, by_column;
  int64_t kernel, stride, padding;
  const float* norm_weight;  // (outputs), or null for no LayerNorm
  const float* norm_bias;    // (outputs)
  float eps;
  float* y;  // (B, H', W', outputs)
  bool gelu;
  int threads;

  int64_t out_height() const { return (height + 2 * padding - kernel) / stride + 1; }
  int64_t out_width() const { return (width + 2 * padding - kernel) / stride + 1; }
};

// x + out_proj(norm(scan(silu(conv(in_proj(norm(x))))))), and y + fc2(gelu(fc1(norm(y)))) where there is an MLP. The
// weights and biases of the LayerNorms are part of the layers behind them.
struct PackedBlock {
  PackedLayer in_proj, x_proj, out_proj, fc1, fc2;  // fc1.memory null: no MLP
  float eps1, eps_out, eps2;
  const float* conv_weight;  // (9, D)
  const float* conv_bias;    // (D)
  ImageScan scan;            // its x, dbc: set by the block
  const float* x;            // (B, H, W, dim)
  float* y;
  int threads;
};

// The entry points of one instruction set.
struct Products {
  int64_t (*packed_bytes)(Precision, int64_t inputs, int64_t outputs);
  void (*pack)(Precision, int64_t inputs, int64_t outputs, const float* weight, const float* bias, void* memory);
  void (*linear)(const PackedLinear<>&);
  void (*convolution)(const PackedConvolution&);
  void (*block)(const PackedBlock&, void (*scan)(const ImageScan&, void* y));
};

}  // namespace vmamba
