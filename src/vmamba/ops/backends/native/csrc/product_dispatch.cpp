#include "product_dispatch.hpp"

#include <algorithm>
#include <stdexcept>

#include "dispatch.hpp"

namespace vmamba {

extern const Products products_baseline;
#ifdef VMAMBA_X86
extern const Products products_avx2, products_avx512, products_avx512_bf16;
#endif

const std::vector<std::string>& product_sets() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> found = instruction_sets();
#ifdef VMAMBA_X86
    if (found.front() == "avx512" && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"))
      found.insert(found.begin(), "avx512_bf16");
#endif
    return found;
  }();
  return names;
}

const Products& products_for(const std::string& name) {
  const auto& usable = product_sets();
  if (std::find(usable.begin(), usable.end(), name) == usable.end())
    throw std::invalid_argument("this processor cannot run the products for '" + name + "'");
#ifdef VMAMBA_X86
  if (name == "avx512_bf16") return products_avx512_bf16;
  if (name == "avx512") return products_avx512;
  if (name == "avx2") return products_avx2;
#endif
  return products_baseline;
}

}  // namespace vmamba
