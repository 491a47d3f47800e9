// The part of libtorch's stable C interface that the operator uses (torch/csrc/stable/c/shim.h), as of PyTorch 2.11,
// which later versions still offer. Functions are looked up in the libtorch of the process, so that neither its headers
// nor its libraries are needed to build this.
#pragma once

#include <dlfcn.h>
#include <stdint.h>

#include <stdexcept>
#include <string>

namespace libtorch {

constexpr uint64_t kInterface = (uint64_t(2) << 56) | (uint64_t(11) << 48);

// Objects of libtorch.
struct Tensor;
struct String;
struct Library;

using Value = uint64_t;  // an argument or a result: a number, or the address of an object, which its receiver owns
using Boxed = void (*)(Value* stack, uint64_t arguments, uint64_t results);
using Error = int32_t;  // 0: none

struct Api {
  Error (*aoti_torch_library_init_fragment)(const char* name, const char* file, uint32_t line, Library**);
  Error (*aoti_torch_library_init_impl)(const char* name, const char* key, const char* file, uint32_t line, Library**);
  Error (*aoti_torch_library_def)(Library*, const char* schema);
  Error (*torch_library_impl)(Library*, const char* name, Boxed, uint64_t interface);
  Error (*torch_call_dispatcher)(const char* name, const char* overload, Value* stack, uint64_t interface);
  Error (*torch_parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*)(int64_t, int64_t, void*), void*);
  Error (*torch_get_num_threads)(uint32_t*);
  Error (*torch_string_c_str)(String*, const char**);
  Error (*torch_delete_string)(String*);
  Error (*aoti_torch_empty_strided)(int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                    int32_t device, int32_t index, Tensor**);
  Error (*aoti_torch_delete_tensor_object)(Tensor*);
  Error (*aoti_torch_get_data_ptr)(Tensor*, void**);
  Error (*aoti_torch_get_dim)(Tensor*, int64_t*);
  Error (*aoti_torch_get_sizes)(Tensor*, int64_t**);
  Error (*aoti_torch_get_dtype)(Tensor*, int32_t*);
  int32_t (*aoti_torch_dtype_float32)();
  int32_t (*aoti_torch_device_type_cpu)();
  int32_t (*aoti_torch_memory_format_contiguous_format)();

  // Throws std::runtime_error where the process has no libtorch, or an older one.
  Api() {
#ifdef __APPLE__
    void* library = dlopen("libtorch_cpu.dylib", RTLD_LAZY | RTLD_NOLOAD);
    if (!library) library = dlopen("@rpath/libtorch_cpu.dylib", RTLD_LAZY | RTLD_NOLOAD);
#else
    void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
#endif
    if (!library) throw std::runtime_error("load PyTorch before the operators of vmamba");
#define VMAMBA_FIND(name) find(library, #name, name)
    VMAMBA_FIND(aoti_torch_library_init_fragment);
    VMAMBA_FIND(aoti_torch_library_init_impl);
    VMAMBA_FIND(aoti_torch_library_def);
    VMAMBA_FIND(torch_library_impl);
    VMAMBA_FIND(torch_call_dispatcher);
    VMAMBA_FIND(torch_parallel_for);
    VMAMBA_FIND(torch_get_num_threads);
    VMAMBA_FIND(torch_string_c_str);
    VMAMBA_FIND(torch_delete_string);
    VMAMBA_FIND(aoti_torch_empty_strided);
    VMAMBA_FIND(aoti_torch_delete_tensor_object);
    VMAMBA_FIND(aoti_torch_get_data_ptr);
    VMAMBA_FIND(aoti_torch_get_dim);
    VMAMBA_FIND(aoti_torch_get_sizes);
    VMAMBA_FIND(aoti_torch_get_dtype);
    VMAMBA_FIND(aoti_torch_dtype_float32);
    VMAMBA_FIND(aoti_torch_device_type_cpu);
    VMAMBA_FIND(aoti_torch_memory_format_contiguous_format);
#undef VMAMBA_FIND
  }

 private:
  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) throw std::runtime_error("the operators of vmamba need PyTorch 2.11 or later");
  }
};

}  // namespace libtorch
