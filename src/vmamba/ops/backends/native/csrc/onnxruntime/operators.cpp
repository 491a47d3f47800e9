// Operators of ONNX Runtime: the scans, one for each pattern, and the layers between them. They are named as the
// functions of exported files (`onnx_scan.py`, `onnx_layers.py`), which they replace where this library is registered,
// and run on the session's threads.
#include <ctype.h>

#include <exception>
#include <functional>
#include <new>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "../scan_operator.hpp"
#include "abi.hpp"

using namespace vmamba;

namespace {

constexpr size_t kAnyRank = ~size_t(0);

using Operands = std::vector<Operand>;
using Work = std::function<void(void* y)>;

// An operator of the runtime whose result has the shape of its first operand.
struct Operator : ort::Operator {
  std::string title;
  std::vector<size_t> ranks;                  // of its operands
  std::function<Work(const Operands&)> plan;  // its work; none if the shapes do not fit together
};

struct Kernel {
  const ort::Api* api;
  const Operator* op;
};

int all_threads() { return int(std::thread::hardware_concurrency()); }

// Reads operand i; a status where the runtime has one, or the rank is wrong.
ort::Status* read(const ort::Api& api, ort::Context* context, size_t i, size_t expected, Operand& operand) {
  using Api = ort::Api;
  const ort::Value* value = nullptr;
  ort::Shape* shape = nullptr;
  void* data = nullptr;
  size_t rank = 0;
  if (auto* failed = api.call(Api::kGetInput, static_cast<const ort::Context*>(context), i, &value)) return failed;
  if (auto* failed = api.call(Api::kGetShape, value, &shape)) return failed;
  ort::Status* failed = api.call(Api::kGetRank, static_cast<const ort::Shape*>(shape), &rank);
  if (!failed && rank != expected && expected != kAnyRank)
    failed = api.error(ort::kInvalidArgument, "an operand has a wrong number of axes");
  if (!failed) {
    operand.sizes.resize(rank);
    failed = api.call(Api::kGetSizes, static_cast<const ort::Shape*>(shape), operand.sizes.data(), rank);
  }
  reinterpret_cast<void (*)(ort::Shape*)>(api.functions[Api::kReleaseShape])(shape);
  if (failed) return failed;
  if (auto* fault = api.call(Api::kGetData, const_cast<ort::Value*>(value), &data)) return fault;
  operand.data = data;
  return nullptr;
}

// The session's threads, while the object lives.
struct Session {
  const ort::Api* api;
  ort::Context* context;

  static void run(void* session, int threads, void (*body)(void*), void* argument) {
    struct Call {
      void (*body)(void*);
      void* argument;
    } call{body, argument};
    const auto& self = *static_cast<Session*>(session);
    const auto member = [](void* shared, size_t) {
      const Call& c = *static_cast<Call*>(shared);
      c.body(c.argument);
    };
    void (*each)(void*, size_t) = member;
    // The one failure that it knows is a missing function.
    self.api->call(ort::Api::kParallelFor, static_cast<const ort::Context*>(self.context), each, size_t(threads),
                   size_t(threads), static_cast<void*>(&call));
  }
};

ort::Status* run(const Kernel& kernel, ort::Context* context) {
  using Api = ort::Api;
  const ort::Api& api = *kernel.api;
  Operands in(kernel.op->ranks.size());
  for (size_t i = 0; i < in.size(); ++i)
    if (auto* failed = read(api, context, i, kernel.op->ranks[i], in[i])) return failed;
  const auto work = kernel.op->plan(in);
  if (!work) return api.error(ort::kInvalidArgument, "the shapes of the operands do not fit together");

  const Sizes& grid = in[0].sizes;
  ort::Value* result = nullptr;
  void* y = nullptr;
  if (auto* failed = api.call(Api::kGetOutput, context, size_t(0), grid.data(), grid.size(), &result)) return failed;
  if (auto* failed = api.call(Api::kGetData, result, &y)) return failed;
  for (int64_t size : grid)
    if (size == 0) return nullptr;
  Session session{&api, context};
  const BorrowedThreads threads(&Session::run, &session);
  work(y);
  return nullptr;
}

ort::Status* compute(void* self, ort::Context* context) {
  const auto& kernel = *static_cast<Kernel*>(self);
  try {
    return run(kernel, context);
  } catch (const std::exception& fault) {  // no memory
    return kernel.api->error(ort::kFail, fault.what());
  }
}

ort::Status* create(const ort::Operator* op, const ort::Api* api, const ort::KernelInfo*, void** kernel) {
  *kernel = new (std::nothrow) Kernel{api, static_cast<const Operator*>(op)};
  return *kernel ? nullptr : api->error(ort::kFail, "no memory");
}

// "rows_backward" → "RowsBackward".
std::string in_camel_case(const std::string& words) {
  std::string name;
  for (size_t i = 0; i < words.size(); ++i)
    if (words[i] != '_') name += i == 0 || words[i - 1] == '_' ? char(toupper(words[i])) : words[i];
  return name;
}

template <class Plan>
Operator make_operator(std::string title, std::vector<size_t> ranks, Plan plan) {
  Operator op{};
  op.title = std::move(title);
  op.ranks = std::move(ranks);
  op.plan = std::move(plan);
  op.interface = ort::kInterface;
  op.name = [](const ort::Operator* o) { return static_cast<const Operator*>(o)->title.c_str(); };
  op.provider = [](const ort::Operator*) -> const char* { return nullptr; };  // the CPU's
  op.input_type = [](const ort::Operator*, size_t) { return ort::kFloat; };
  op.input_count = [](const ort::Operator* o) { return static_cast<const Operator*>(o)->ranks.size(); };
  op.output_type = [](const ort::Operator*, size_t) { return ort::kFloat; };
  op.output_count = [](const ort::Operator*) { return size_t(1); };
  op.input_characteristic = [](const ort::Operator*, size_t) { return ort::kRequired; };
  op.output_characteristic = [](const ort::Operator*, size_t) { return ort::kRequired; };
  op.input_memory = [](const ort::Operator*, size_t) { return 0; };
  op.create_or_fail = create;
  op.compute = compute;
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.first_version = [](const ort::Operator*) { return 1; };
  op.last_version = [](const ort::Operator*) { return 1; };
  return op;
}

Operator scan_operator(const std::string& title, const Routes& routes) {
  return make_operator(title, {kRanks, kRanks + kOperands}, [routes](const Operands& in) -> Work {
    ImageScan s;
    if (!fill(s, routes, in.data())) return {};
    s.threads = all_threads();
    return [s](void* y) { kernels_for(instruction_sets().front()).image_forward(s, y); };
  });
}

Operator depthwise_operator() {  // x (B, H, W, D), weight (9, D), bias (D)
  return make_operator("DepthwiseSilu", {4, 2, 1}, [](const Operands& in) -> Work {
    const Sizes& grid = in[0].sizes;
    const int64_t channels = grid[3];
    if (in[1].sizes != Sizes{9, channels} || in[2].sizes != Sizes{channels}) return {};
    const DepthwiseSilu c{static_cast<const float*>(in[0].data),
                          static_cast<const float*>(in[1].data),
                          static_cast<const float*>(in[2].data),
                          grid[0],
                          grid[1],
                          grid[2],
                          channels,
                          all_threads()};
    return [c](void* y) { kernels_for(instruction_sets().front()).depthwise_silu(c, static_cast<float*>(y)); };
  });
}

Operator gelu_operator() {  // x (…, C), bias (C)
  return make_operator("BiasGelu", {kAnyRank, 1}, [](const Operands& in) -> Work {
    const Sizes& shape = in[0].sizes;
    if (shape.empty() || in[1].sizes != Sizes{shape.back()}) return {};
    const int64_t rows = std::accumulate(shape.begin(), shape.end() - 1, int64_t(1), std::multiplies<int64_t>());
    const BiasGelu g{static_cast<const float*>(in[0].data), static_cast<const float*>(in[1].data), rows, shape.back(),
                     all_threads()};
    return [g](void* y) { kernels_for(instruction_sets().front()).bias_gelu(g, static_cast<float*>(y)); };
  });
}

// Lives as long as the process: sessions keep the addresses.
const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = [] {
    std::vector<Operator> made{depthwise_operator(), gelu_operator()};
    for (const auto& [pattern, routes] : patterns())
      for (const char* suffix : {"", "States"})
        made.push_back(scan_operator("SS2DScan" + in_camel_case(pattern) + suffix, routes));
    return made;
  }();
  return all;
}

ort::Status* register_all(const ort::Api& api, ort::SessionOptions* options) {
  using Api = ort::Api;
  ort::Domain* domain = nullptr;  // lives as long as the process, too
  if (auto* failed = api.call(Api::kCreateDomain, static_cast<const char*>("vmamba"), &domain)) return failed;
  for (const Operator& op : operators()) {
    const ort::Operator* described = &op;
    if (auto* failed = api.call(Api::kAddOperator, domain, described)) return failed;
  }
  return api.call(Api::kAddDomain, options, domain);
}

}  // namespace

// Found by name by ``SessionOptions.register_custom_ops_library``.
extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options,
                                                                                 const ort::ApiBase* base) {
  if (const ort::Api* api = base->get(ort::kInterface)) return register_all(*api, options);
  return base->get(1)->error(ort::kFail, "the operators of vmamba need ONNX Runtime 1.17 or later");
}
