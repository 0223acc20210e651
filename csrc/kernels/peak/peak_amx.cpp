// The register-only loop of tdpbusd. Its 4 sums are enough: one product takes 16 cycles to start the next, 52 to end.
#include "../common/amx.h"
#include "loops.h"

namespace int8d {

void peak_amx(int64_t rounds) {
  const amx::Tiles tiles(amx::kRows, amx::kRowBytes);
  for (int64_t product = 0; product < rounds * kPeakChains; product += 4) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
}

}  // namespace int8d
