// Which instruction sets this processor runs.
#pragma once

#include <string>
#include <vector>

#include "arguments.hpp"

namespace vmamba {

// The usable ones, the best first; "baseline" is always last.
const std::vector<std::string>& instruction_sets();

// The kernels for one of these names; throws std::invalid_argument for any other.
const Kernels& kernels_for(const std::string& name);

}  // namespace vmamba
