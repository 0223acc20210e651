#include "cpu.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace int8d {

std::string cpu_name() {
#if defined(__x86_64__)
  uint32_t r[4] = {}, words[12] = {};
  if (!__get_cpuid(0x80000004, &r[0], &r[1], &r[2], &r[3])) return "unknown";
  for (uint32_t i = 0; i < 3; ++i) {
    uint32_t* w = words + 4 * i;
    __get_cpuid(0x80000002 + i, &w[0], &w[1], &w[2], &w[3]);
  }
  char brand[sizeof words + 1] = {};
  std::memcpy(brand, words, sizeof words);
  __get_cpuid(1, &r[0], &r[1], &r[2], &r[3]);
  char signature[16];
  std::snprintf(signature, sizeof signature, ", %x", r[0]);
  const char* start = brand;
  while (*start == ' ') ++start;  // some pad on the left
  return start + std::string(signature);
#else
  std::string name;
  std::ifstream("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1") >> name;
  return name.empty() ? "unknown" : name;
#endif
}

}  // namespace int8d
