// Which instruction sets this processor runs for the frozen layers: some have more for products than for scans.
#pragma once

#include <string>
#include <vector>

#include "product_arguments.hpp"

namespace vmamba {

// The usable ones, the best first; "baseline" is always last.
const std::vector<std::string>& product_sets();

// The kernels for one of these names; throws std::invalid_argument for any other.
const Products& products_for(const std::string& name);

}  // namespace vmamba
