// The part of ONNX Runtime's C interface that the operators use: a table of functions whose positions never change, and
// the description of an operator, which only grows at its end. As of interface 17 (ONNX Runtime 1.17), which later
// versions still offer.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace ort {

constexpr uint32_t kInterface = 17;

// Objects of the runtime.
struct Status;
struct Value;
struct Context;  // of one computation
struct Shape;    // and element type of a tensor
struct ShapeInference;
struct KernelInfo;
struct SessionOptions;
struct Domain;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1 };
enum Characteristic : int { kRequired = 0 };

// Functions of the runtime, in a table of 279 for this interface.
struct Api {
  enum Position : int {
    kCreateStatus = 0,
    kCreateDomain = 26,
    kAddOperator = 27,
    kAddDomain = 28,
    kGetData = 51,
    kGetRank = 61,
    kGetSizes = 62,
    kGetShape = 65,
    kGetInput = 90,
    kGetOutput = 91,
    kReleaseShape = 99,
    kParallelFor = 274,
  };
  void* functions[kParallelFor + 1];

  template <class... Arguments>
  Status* call(Position position, Arguments... arguments) const {
    return reinterpret_cast<Status* (*)(Arguments...)>(functions[position])(arguments...);
  }
  Status* error(ErrorCode code, const char* message) const { return call(kCreateStatus, int(code), message); }
};

struct ApiBase {
  const Api* (*get)(uint32_t interface);  // null for one that the runtime does not offer
  const char* (*version)();
};

// An operator; the functions that the runtime may do without are left null.
struct Operator {
  uint32_t interface;
  void* (*create)(const Operator*, const Api*, const KernelInfo*);
  const char* (*name)(const Operator*);
  const char* (*provider)(const Operator*);
  ElementType (*input_type)(const Operator*, size_t);
  size_t (*input_count)(const Operator*);
  ElementType (*output_type)(const Operator*, size_t);
  size_t (*output_count)(const Operator*);
  void (*compute_or_abort)(void*, Context*);
  void (*destroy)(void*);
  Characteristic (*input_characteristic)(const Operator*, size_t);
  Characteristic (*output_characteristic)(const Operator*, size_t);
  int (*input_memory)(const Operator*, size_t);
  int (*variadic_functions[4])(const Operator*);
  Status* (*create_or_fail)(const Operator*, const Api*, const KernelInfo*, void**);
  Status* (*compute)(void*, Context*);
  Status* (*infer_shape)(const Operator*, ShapeInference*);
  int (*first_version)(const Operator*);
  int (*last_version)(const Operator*);
};

}  // namespace ort
