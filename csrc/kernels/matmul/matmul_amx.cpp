// Product of two activations, AMX. Block: 2 tiles of up to 16 rows x 32 columns.
//
// Tiles: 4 sums, 2 of rows of a, where they lie, 2 of packed columns (common/amx.h). A step of 64 inputs takes 4 loads
// and 4 tdpbusd: 64 cycles. Attention has few inputs a sum, 1 to 4 steps, so what costs as much is to make bytes of the
// sums: that is done for a block while the next one's tiles are computed. The rows of a call are cut evenly; where
// tiles do not fit, the last one laps over.
#include "../common/amx.h"
#include "matmul_avx512.h"
#include "variants.h"

namespace int8d {
namespace {

constexpr int kPanel = MatmulScratch::kPanel, kBlockSums = MatmulTilesScratch::kRows * kPanel;

// The rows of one tile that are to be made bytes of.
struct Done {
  const int32_t* sums = nullptr;  // [rows][32]
  const int32_t* rows = nullptr;  // their terms
  uint8_t* out = nullptr;
};

struct Runner {
  const MatmulCall& call;
  const Epilogue& epilogue;
  const int8_t* b;
  const int32_t *columns, *rows;
  int32_t* sums;  // of two blocks
  int count = call.row_end - call.row_begin, tiles = (count + amx::kRows - 1) / amx::kRows;
  int height = (count + tiles - 1) / tiles, runs = (call.shape.k + amx::kRowBytes - 1) / amx::kRowBytes;

  // V vectors of 16 columns.
  template <int V>
  void finish(const Done& done, uint32_t mask) const {
    const size_t n = static_cast<size_t>(call.shape.n);
    const __m512 multiplier = epilogue.multiplier, hi = epilogue.hi;
    constexpr int kTogether = 4 / V;
    __m512i column[V];
    unroll<V>([&](auto v) INT8D_INLINE { column[v] = _mm512_load_si512(columns + 16 * v); });
    for (int row = 0; row < height; row += kTogether) {
      __m512i q[4];
      unroll<4>([&](auto i) INT8D_INLINE {
        const int r = std::min(row + i / V, height - 1);
        const __m512i term = _mm512_add_epi32(column[i % V], _mm512_set1_epi32(done.rows[r]));
        const __m512i sum = _mm512_load_si512(done.sums + r * kPanel + 16 * (i % V));
        q[i] = Epilogue::round(_mm512_add_epi32(sum, term), multiplier, hi);
      });
      const __m512i bytes = avx512::finish4(q[0], q[1], q[2], q[3], epilogue.finish);
      unroll<kTogether>([&](auto i) INT8D_INLINE {
        uint8_t* out = done.out + static_cast<size_t>(std::min(row + i, height - 1)) * n;
        if constexpr (V == 2)
          avx512::store32(out, _mm512_extracti64x4_epi64(bytes, i), mask);
        else
          avx512::store16(out, _mm512_extracti32x4_epi32(bytes, i), mask);
      });
    }
  }

  template <int V>
  void panel(int first) {
    const size_t k = static_cast<size_t>(call.shape.k);
    const uint32_t mask = ~0u >> (32 - std::min(kPanel, call.shape.n - first));
    Done last[2];
    int pending = 0;
    for (int tile = 0, turn = 0; tile < tiles; tile += 2, turn ^= 1) {
      const int halves = std::min(2, tiles - tile);
      int begin[2];
      for (int half = 0; half < 2; ++half) begin[half] = std::min((tile + half) * height, count - height);
      const uint8_t* a0 = call.a + static_cast<size_t>(call.row_begin + begin[0]) * k;
      const uint8_t* a1 = call.a + static_cast<size_t>(call.row_begin + begin[1]) * k;
      const int8_t* w = b;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int run = 0; run < runs; ++run, a0 += 64, a1 += 64, w += 16 * 128) {
        _tile_loadd(4, a0, k);
        _tile_loadd(6, w, 128);
        _tile_dpbusd(0, 4, 6);
        if constexpr (V == 2) {
          _tile_loadd(7, w + 64, 128);
          _tile_dpbusd(1, 4, 7);
        }
        if (halves == 1) continue;
        _tile_loadd(5, a1, k);
        _tile_dpbusd(2, 5, 6);
        if constexpr (V == 2) _tile_dpbusd(3, 5, 7);
      }
      int32_t* to = sums + turn * kBlockSums;
      int32_t* second = to + amx::kRows * kPanel;
      _tile_stored(0, to, kPanel * sizeof(int32_t));
      if constexpr (V == 2) _tile_stored(1, to + 16, kPanel * sizeof(int32_t));
      if (halves == 2) {
        _tile_stored(2, second, kPanel * sizeof(int32_t));
        if constexpr (V == 2) _tile_stored(3, second + 16, kPanel * sizeof(int32_t));
      }
      for (int half = 0; half < pending; ++half) finish<V>(last[half], mask);
      pending = halves;
      for (int half = 0; half < 2; ++half)
        last[half] = {half ? second : to, rows + begin[half],
                      call.out + static_cast<size_t>(call.row_begin + begin[half]) * call.shape.n + first};
    }
    for (int half = 0; half < pending; ++half) finish<V>(last[half], mask);
  }
};

}  // namespace

void matmul_u8u8_32x32_amx(const MatmulCall& call) {
  const MatmulShape& s = call.shape;
  const MatmulTilesScratch scratch(s);
  int8_t* b = reinterpret_cast<int8_t*>(call.scratch);
  int32_t* columns = reinterpret_cast<int32_t*>(call.scratch + scratch.columns);
  int32_t* rows = reinterpret_cast<int32_t*>(call.scratch + scratch.rows);
  sum_rows(call, rows);
  const Epilogue epilogue(*call.params);
  Runner runner{call, epilogue, b, columns, rows, reinterpret_cast<int32_t*>(call.scratch + scratch.sums)};
  const amx::Tiles tiles(runner.height, std::min((s.k + 3) / 4 * 4, amx::kRowBytes));
  for (int first = 0; first < s.n; first += kPanel) {
    pack_columns(call, first, b, columns);
    if (s.n - first > 16) pack_columns(call, first + 16, b + 64, columns + 16);
    if (s.n - first > 16)
      runner.panel<2>(first);
    else
      runner.panel<1>(first);
  }
}

}  // namespace int8d
