// AMX tiles for int8: their configuration. Included by the *_amx.cpp files only.
//
// A tile is up to 16 rows of 64 bytes. tdpbusd adds to C [rows][16] s32 the product of A [rows][64] u8 and B
// [16][16][4] s8, where B's row k holds inputs 4k .. 4k + 3 of 16 output channels: 16384 multiply-accumulates in 16
// cycles; fewer rows take fewer cycles, down to about 13.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace int8d::amx {

constexpr int kRows = 16, kRowBytes = 64, kTileBytes = kRows * kRowBytes;

// The operand of ldtilecfg.
struct Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(Config) == 64);

// Tiles 0 .. 3 are C, 4 and 5 are A, all with `rows` rows; 6 and 7 are B. `bytes` of A's rows, a multiple of 4, are
// inputs: short rows that lie close together are read faster if they are not read whole. The tiles are this thread's
// until the object goes; released, they cost nothing at a context switch.
class Tiles {
 public:
  Tiles(int rows, int bytes) {
    alignas(64) Config config;
    for (int tile = 0; tile < 8; ++tile) {
      const bool a = tile == 4 || tile == 5, b = tile >= 6;
      config.row_bytes[tile] = static_cast<uint16_t>(a ? bytes : kRowBytes);
      config.rows[tile] = static_cast<uint8_t>(b ? bytes / 4 : rows);
    }
    // g++ 12's _tile_loadconfig names 8 of the 64 bytes as read, and the rest may never be stored.
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace int8d::amx
