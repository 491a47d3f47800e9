// `vmamba.ops.ss2d_scan` as an operator of libtorch, for programs that do not import vmamba. Its namespace is one of
// its own, so that it can be loaded beside the Python package, too. It runs on libtorch's threads.
#include <stdio.h>

#include <memory>
#include <optional>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "../scan_operator.hpp"
#include "abi.hpp"

using namespace vmamba;

namespace {

constexpr const char* kNamespace = "vmamba_cpp";
constexpr const char* kSchema =
    "ss2d_scan(Tensor x, Tensor dbc, Tensor dt_weight, Tensor A, Tensor D, Tensor dt_bias, str pattern) -> Tensor";

std::optional<libtorch::Api> found;
const libtorch::Api& api() { return *found; }

void check(libtorch::Error error, const char* what) {
  if (error) throw std::runtime_error(std::string("vmamba: ") + what);
}

struct Release {
  void operator()(libtorch::Tensor* tensor) const { api().aoti_torch_delete_tensor_object(tensor); }
  void operator()(libtorch::String* string) const { api().torch_delete_string(string); }
};
using Tensor = std::unique_ptr<libtorch::Tensor, Release>;
using String = std::unique_ptr<libtorch::String, Release>;

template <class Owner>
Owner owned(libtorch::Value value) {
  return Owner(reinterpret_cast<typename Owner::pointer>(value));
}

Tensor contiguous(Tensor tensor) {
  libtorch::Value stack[2] = {reinterpret_cast<libtorch::Value>(tensor.release()),
                              libtorch::Value(api().aoti_torch_memory_format_contiguous_format())};
  check(api().torch_call_dispatcher("aten::contiguous", "", stack, libtorch::kInterface), "no memory");
  return owned<Tensor>(stack[0]);
}

Operand read(const Tensor& tensor, size_t rank) {
  int32_t dtype = 0;
  int64_t axes = 0, *sizes = nullptr;
  void* data = nullptr;
  check(api().aoti_torch_get_dtype(tensor.get(), &dtype), "an operand has no dtype");
  check(api().aoti_torch_get_dim(tensor.get(), &axes), "an operand has no shape");
  check(api().aoti_torch_get_sizes(tensor.get(), &sizes), "an operand has no shape");
  check(api().aoti_torch_get_data_ptr(tensor.get(), &data), "an operand has no memory");
  if (dtype != api().aoti_torch_dtype_float32()) throw std::runtime_error("vmamba: the operands must be float32");
  if (axes != int64_t(rank)) throw std::runtime_error("vmamba: an operand has a wrong number of axes");
  return {data, Sizes(sizes, sizes + axes)};
}

const Routes& routes_of(const String& name) {
  const char* text = nullptr;
  check(api().torch_string_c_str(name.get(), &text), "the pattern cannot be read");
  for (const auto& [pattern, routes] : patterns())
    if (pattern == text) return routes;
  throw std::runtime_error(std::string("vmamba: unknown scan pattern '") + text + "'");
}

Tensor empty(const Sizes& sizes) {
  Sizes strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * (sizes[i] < 1 ? 1 : sizes[i]);
  libtorch::Tensor* result = nullptr;
  check(
      api().aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(),
                                     api().aoti_torch_dtype_float32(), api().aoti_torch_device_type_cpu(), 0, &result),
      "no memory");
  return Tensor(result);
}

// libtorch's threads.
void run_on_torch(void*, int threads, void (*body)(void*), void* argument) {
  struct Call {
    void (*body)(void*);
    void* argument;
  } call{body, argument};
  const auto each = [](int64_t begin, int64_t end, void* context) {
    const Call& c = *static_cast<Call*>(context);
    for (int64_t i = begin; i < end; ++i) c.body(c.argument);
  };
  check(api().torch_parallel_for(0, threads, 1, each, &call), "libtorch's threads failed");
}

// The stack holds the arguments, which are ours, and then the result.
void ss2d_scan(libtorch::Value* stack, uint64_t, uint64_t) {
  Tensor tensors[kOperands];
  for (size_t i = 0; i < kOperands; ++i) tensors[i] = owned<Tensor>(stack[i]);
  const String pattern = owned<String>(stack[kOperands]);
  Operand in[kOperands];
  for (size_t i = 0; i < kOperands; ++i) {
    tensors[i] = contiguous(std::move(tensors[i]));
    in[i] = read(tensors[i], kRanks[i]);
  }
  ImageScan s;
  if (!fill(s, routes_of(pattern), in))
    throw std::runtime_error("vmamba: the shapes of the operands do not fit together");
  Tensor result = empty(in[0].sizes);
  void* y = nullptr;
  check(api().aoti_torch_get_data_ptr(result.get(), &y), "the result has no memory");
  if (s.batch * s.tokens() * s.channels > 0) {
    uint32_t threads = 1;
    check(api().torch_get_num_threads(&threads), "libtorch has no threads");
    s.threads = int(threads);
    const BorrowedThreads borrowed(run_on_torch, nullptr);
    kernels_for(instruction_sets().front()).image_forward(s, y);
  }
  stack[0] = reinterpret_cast<libtorch::Value>(result.release());
}

// When the library is loaded. Nothing can catch what is thrown there.
const bool registered = [] {
  try {
    found.emplace();
    libtorch::Library *schemas = nullptr, *kernels = nullptr;  // live as long as the process
    check(api().aoti_torch_library_init_fragment(kNamespace, __FILE_NAME__, __LINE__, &schemas), "no namespace");
    check(api().aoti_torch_library_def(schemas, kSchema), "the operators are loaded already, from another file");
    check(api().aoti_torch_library_init_impl(kNamespace, "CPU", __FILE_NAME__, __LINE__, &kernels), "no namespace");
    check(api().torch_library_impl(kernels, "ss2d_scan", ss2d_scan, libtorch::kInterface), "no kernel");
    return true;
  } catch (const std::exception& fault) {
    fprintf(stderr, "%s\n", fault.what());
    return false;
  }
}();

}  // namespace
