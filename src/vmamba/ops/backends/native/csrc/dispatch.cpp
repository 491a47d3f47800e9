#include "dispatch.hpp"

#include <algorithm>
#include <stdexcept>

namespace vmamba {

extern const Kernels baseline;
#ifdef VMAMBA_X86
extern const Kernels avx2, avx512;
#endif

const std::vector<std::string>& instruction_sets() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> found;
#ifdef VMAMBA_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found.push_back("avx512");
    if (has_avx2) found.push_back("avx2");
#endif
    found.push_back("baseline");
    return found;
  }();
  return names;
}

const Kernels& kernels_for(const std::string& name) {
  const auto& usable = instruction_sets();
  if (std::find(usable.begin(), usable.end(), name) == usable.end())
    throw std::invalid_argument("this processor cannot run the kernels for '" + name + "'");
#ifdef VMAMBA_X86
  if (name == "avx512") return avx512;
  if (name == "avx2") return avx2;
#endif
  return baseline;
}

}  // namespace vmamba
