// The scans as operators of ONNX Runtime: one for each pattern, named as the functions of exported files
// (`vmamba.export.onnx_scan`), which they replace where this library is registered. They run on the session's threads.
#include <ctype.h>

#include <exception>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "../scan_operator.hpp"
#include "abi.hpp"

using namespace vmamba;

namespace {

// An operator of the runtime and its routes.
struct ScanOperator : ort::Operator {
  std::string title;
  Routes routes;
};

struct Kernel {
  const ort::Api* api;
  const ScanOperator* scan;
};

// Reads operand i; a status where the runtime has one, or the rank is wrong.
ort::Status* read(const ort::Api& api, ort::Context* context, size_t i, Operand& operand) {
  using Api = ort::Api;
  const ort::Value* value = nullptr;
  ort::Shape* shape = nullptr;
  void* data = nullptr;
  size_t rank = 0;
  if (auto* failed = api.call(Api::kGetInput, static_cast<const ort::Context*>(context), i, &value)) return failed;
  if (auto* failed = api.call(Api::kGetShape, value, &shape)) return failed;
  ort::Status* failed = api.call(Api::kGetRank, static_cast<const ort::Shape*>(shape), &rank);
  if (!failed && rank != kRanks[i]) failed = api.error(ort::kInvalidArgument, "an operand has a wrong number of axes");
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

ort::Status* scan(const Kernel& kernel, ort::Context* context) {
  using Api = ort::Api;
  const Api& api = *kernel.api;
  Operand in[kOperands];
  for (size_t i = 0; i < kOperands; ++i)
    if (auto* failed = read(api, context, i, in[i])) return failed;
  const auto& grid = in[0].sizes;
  ImageScan s;
  if (!fill(s, kernel.scan->routes, in))
    return api.error(ort::kInvalidArgument, "the shapes of the operands do not fit together");
  s.threads = int(std::thread::hardware_concurrency());

  ort::Value* result = nullptr;
  void* y = nullptr;
  if (auto* failed = api.call(Api::kGetOutput, context, size_t(0), grid.data(), grid.size(), &result)) return failed;
  if (auto* failed = api.call(Api::kGetData, result, &y)) return failed;
  if (s.batch * s.tokens() * s.channels == 0) return nullptr;
  Session session{&api, context};
  const BorrowedThreads threads(&Session::run, &session);
  kernels_for(instruction_sets().front()).image_forward(s, y);
  return nullptr;
}

ort::Status* compute(void* self, ort::Context* context) {
  const auto& kernel = *static_cast<Kernel*>(self);
  try {
    return scan(kernel, context);
  } catch (const std::exception& fault) {  // no memory
    return kernel.api->error(ort::kFail, fault.what());
  }
}

ort::Status* create(const ort::Operator* op, const ort::Api* api, const ort::KernelInfo*, void** kernel) {
  *kernel = new (std::nothrow) Kernel{api, static_cast<const ScanOperator*>(op)};
  return *kernel ? nullptr : api->error(ort::kFail, "no memory");
}

// "rows_backward" → "RowsBackward".
std::string in_camel_case(const std::string& words) {
  std::string name;
  for (size_t i = 0; i < words.size(); ++i)
    if (words[i] != '_') name += i == 0 || words[i - 1] == '_' ? char(toupper(words[i])) : words[i];
  return name;
}

ScanOperator scan_operator(std::string title, Routes routes) {
  ScanOperator op{};
  op.title = std::move(title);
  op.routes = std::move(routes);
  op.interface = ort::kInterface;
  op.name = [](const ort::Operator* o) { return static_cast<const ScanOperator*>(o)->title.c_str(); };
  op.provider = [](const ort::Operator*) -> const char* { return nullptr; };  // the CPU's
  op.input_type = [](const ort::Operator*, size_t) { return ort::kFloat; };
  op.input_count = [](const ort::Operator*) { return kOperands; };
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

// Lives as long as the process: sessions keep the addresses.
const std::vector<ScanOperator>& operators() {
  static const std::vector<ScanOperator> all = [] {
    std::vector<ScanOperator> made;
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
  for (const ort::Operator& op : operators())
    if (auto* failed = api.call(Api::kAddOperator, domain, &op)) return failed;
  return api.call(Api::kAddDomain, options, domain);
}

}  // namespace

// Found by name by ``SessionOptions.register_custom_ops_library``.
extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options,
                                                                                 const ort::ApiBase* base) {
  if (const ort::Api* api = base->get(ort::kInterface)) return register_all(*api, options);
  return base->get(1)->error(ort::kFail, "the operators of vmamba need ONNX Runtime 1.17 or later");
}
