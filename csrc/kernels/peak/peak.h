// How many 8-bit multiply-accumulates one core does a second when nothing but registers is touched: the roof of every
// dense kernel, measured on the spot, because clocks differ and drift.
#pragma once
#include <chrono>

#include "../common/isa.h"

namespace int8d {

// 10^9 multiply-accumulates a second; 0 where the instruction set has no loop here (the reference).
double peak_gmacs(Isa isa, std::chrono::milliseconds time = std::chrono::milliseconds(50));

}  // namespace int8d
