// Which processor this is: what measurements hold for.
#pragma once
#include <string>

namespace int8d {

// The brand string and the signature (family, model, stepping), or the like; "unknown" where it can't be told. Asks the
// processor, not /proc, which a sandbox may hide.
std::string cpu_name();

}  // namespace int8d
