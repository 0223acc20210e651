// Instruction sets: what this CPU has, and which one to use.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace int8d {

// In order of preference. amx is AMX-INT8 beside avx512vnni, whose kernels it falls back on.
enum class Isa { ref, avx2, avxvnni, avx512vnni, amx, neon_dot };
inline constexpr int kIsas = 6;

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);        // by CPUID, the operating system's saved state and, for amx, its permission
std::vector<Isa> supported_isas();  // ref first, best last

// "auto" or "" means: the environment variable INT8D_ISA if it is set, else the best one of this CPU.
// Throws std::invalid_argument where the name is unknown or the CPU lacks it; the message lists what it has.
Isa resolve_isa(std::string_view requested);

}  // namespace int8d
