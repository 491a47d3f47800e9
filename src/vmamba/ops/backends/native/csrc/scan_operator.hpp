// Patterns by name, operands and their checks, for the operators of other programs: ONNX Runtime, libtorch.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "arguments.hpp"

namespace vmamba {

// For `vmamba.ops.libraries`, which looks for it in the file. The number changes with the operators' names or operands.
__attribute__((used)) static const char kBuild[] = "vmamba operators, interface 2";

using Sizes = std::vector<int64_t>;
using Routes = std::vector<Route>;

// As `vmamba.ops.routes.PATTERNS`.
inline const std::vector<std::pair<std::string, Routes>>& patterns() {
  constexpr Route rows{false, false, false}, rows_back{false, true, false};
  constexpr Route columns{true, false, false}, columns_back{true, true, false};
  static const std::vector<std::pair<std::string, Routes>> all = {
      {"cross", {rows, columns, rows_back, columns_back}},
      {"unidirectional", {rows, rows, rows, rows}},
      {"bidirectional", {rows, rows, rows_back, rows_back}},
      {"rows", {{false, false, true}}},
      {"rows_backward", {{false, true, true}}},
      {"columns", {{true, false, true}}},
      {"columns_backward", {{true, true, true}}},
  };
  return all;
}

// x, dbc, dt_weight, A, D, dt_bias of `vmamba.ops.ss2d_scan`, contiguous, float32.
constexpr size_t kOperands = 6;
constexpr size_t kRanks[kOperands] = {4, 5, 3, 3, 2, 2};

struct Operand {
  const void* data;
  Sizes sizes;  // of the rank above
};

// Fills all of `s` but its threads from kOperands operands. False if the shapes of the operands do not fit together.
inline bool fill(ImageScan& s, const Routes& routes, const Operand* in) {
  s = {};
  s.x = in[0].data;
  s.dbc = in[1].data;
  s.weight = in[2].data;
  s.A = in[3].data;
  s.D = in[4].data;
  s.bias = in[5].data;
  s.batch = in[0].sizes[0];
  s.height = in[0].sizes[1];
  s.width = in[0].sizes[2];
  s.channels = in[0].sizes[3];
  s.rank = in[2].sizes[2];
  s.states = in[3].sizes[2];
  s.storage = Storage::kFloat32;
  for (const Route& route : routes) s.route[s.routes++] = route;
  const int64_t k = s.routes, d = s.channels;
  return s.rank > 0 && s.states > 0 && in[1].sizes == Sizes{s.batch, s.height, s.width, k, s.row()} &&
         in[2].sizes == Sizes{k, d, s.rank} && in[3].sizes == Sizes{k, d, s.states} && in[4].sizes == Sizes{k, d} &&
         in[5].sizes == Sizes{k, d};
}

}  // namespace vmamba
