#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace int8d {
namespace {

constexpr Isa kAll[] = {Isa::ref, Isa::avx2, Isa::avxvnni, Isa::avx512vnni, Isa::amx, Isa::neon_dot};

#if defined(__x86_64__)
uint64_t saved_state() {  // XCR0: which registers the operating system saves at a context switch
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<uint64_t>(hi) << 32) | lo;
}

// Linux saves the 8 KB of tiles only for processes that have asked; all threads of the process may use them then.
bool tiles_permitted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
}

bool detect(Isa isa) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  const uint64_t state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  uint32_t a7, b7, c7, d7;
  if (!__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return false;
  const bool avx2 = ymm && (b7 & bit_AVX2);
  switch (isa) {
    case Isa::avx2:
      return avx2;
    case Isa::avxvnni: {
      uint32_t a71, b71, c71, d71;
      return avx2 && __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71) && (a71 & (1u << 4));
    }
    case Isa::avx512vnni: {
      const uint32_t need = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
      return avx2 && zmm && (b7 & need) == need && (c7 & bit_AVX512VNNI) && (c7 & bit_AVX512VBMI);
    }
    case Isa::amx: {
      constexpr uint32_t kTileInt8 = 3u << 24;        // AMX-TILE, AMX-INT8
      constexpr uint64_t kSaved = uint64_t{3} << 17;  // XTILECFG, XTILEDATA
      return detect(Isa::avx512vnni) && (d7 & kTileInt8) == kTileInt8 && (state & kSaved) == kSaved &&
             tiles_permitted();
    }
    default:
      return false;
  }
}
#elif defined(__aarch64__)
bool detect(Isa isa) { return isa == Isa::neon_dot && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP); }
#else
bool detect(Isa) { return false; }
#endif

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::ref:
      return "ref";
    case Isa::avx2:
      return "avx2";
    case Isa::avxvnni:
      return "avxvnni";
    case Isa::avx512vnni:
      return "avx512vnni";
    case Isa::amx:
      return "amx";
    case Isa::neon_dot:
      return "neon_dot";
  }
  return "?";
}

bool isa_supported(Isa isa) {
  // Asked once: CPUID takes microseconds, under a hypervisor tens of them, and every operator of a model asks.
  static const std::vector<Isa> have = supported_isas();
  return std::find(have.begin(), have.end(), isa) != have.end();
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> found;
  for (Isa isa : kAll)
    if (isa == Isa::ref || detect(isa)) found.push_back(isa);
  return found;
}

Isa resolve_isa(std::string_view requested) {
  std::string name(requested);
  if (name.empty() || name == "auto") {
    const char* forced = std::getenv("INT8D_ISA");
    name = forced ? forced : "";
  }
  const std::vector<Isa> have = supported_isas();
  if (name.empty() || name == "auto") return have.back();
  std::string list;
  for (Isa isa : have) {
    if (name == isa_name(isa)) return isa;
    list += std::string(list.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("instruction set '" + name + "' is unknown or not on this CPU; this CPU has: " + list +
                              " (set INT8D_ISA to one of them, or unset it)");
}

}  // namespace int8d
