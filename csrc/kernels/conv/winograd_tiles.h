// Exact Winograd convolution (winograd.h): the part that no instruction set changes.
//
// A chunk of tiles at a time: its inputs are transformed to V [plane][tile][channel]; then, for a panel of output
// channels at a time, every plane is a product of V with U [plane][channel / 2][panel][2] to M [plane][tile][panel];
// and M is transformed to outputs. U is read from memory or, for large weights and few tiles (winograd_expands),
// computed, kExpanded channels at a time, into a scratch that stays in L2.
//
// Files of several instruction sets include this one, so all of it has internal linkage: the linker must not give one
// file's code to another. `L`, declared by each of them, is a register of one instruction set: kDwords of 32 bits, so
// that a panel is two of them, with the operations used below.
#pragma once
#include <cassert>
#include <optional>

#include "../common/unroll.h"
#include "winograd.h"

namespace int8d::winograd {
namespace {

template <typename L>
using Int = typename L::Int;

// The index of a point of F(N) among the planes.
template <int N>
constexpr int plane_of(int i) {
  return i == N + 1 ? 5 : i;
}

template <typename L, int N>
INT8D_INLINE inline void transform_input(const Int<L> (&d)[N + 2], Int<L> (&v)[N + 2]) {
  auto add = [](Int<L> a, Int<L> b) INT8D_INLINE { return L::add16(a, b); };
  auto sub = [](Int<L> a, Int<L> b) INT8D_INLINE { return L::sub16(a, b); };
  auto twice = [](Int<L> a) INT8D_INLINE { return L::add16(a, a); };
  if constexpr (N == 4) {
    const Int<L> a = sub(d[4], L::template shift16<2>(d[2])), b = sub(d[3], L::template shift16<2>(d[1]));
    const Int<L> c = sub(d[4], d[2]), e = twice(sub(d[3], d[1]));
    v[0] = add(L::template shift16<2>(sub(d[0], d[2])), c);
    v[1] = add(a, b);
    v[2] = sub(a, b);
    v[3] = add(c, e);
    v[4] = sub(c, e);
    v[5] = sub(sub(d[5], d[3]), twice(e));
  } else if constexpr (N == 3) {
    const Int<L> a = sub(d[3], d[2]), b = twice(sub(d[1], d[2]));
    v[3] = sub(d[3], d[1]);
    v[0] = add(twice(sub(d[0], d[2])), v[3]);
    v[1] = sub(a, twice(d[1]));
    v[2] = add(a, b);
    v[4] = add(sub(d[4], d[2]), twice(sub(d[1], d[3])));
  } else {
    v[0] = sub(d[0], d[2]);
    v[1] = add(d[1], d[2]);
    v[2] = sub(d[2], d[1]);
    v[3] = sub(d[3], d[1]);
  }
}

template <typename L, int N>
INT8D_INLINE inline void transform_output(const Int<L> (&m)[N + 2], Int<L> (&y)[N]) {
  auto add = [](Int<L> a, Int<L> b) INT8D_INLINE { return L::add32(a, b); };
  auto sub = [](Int<L> a, Int<L> b) INT8D_INLINE { return L::sub32(a, b); };
  auto twice = [](Int<L> a) INT8D_INLINE { return L::template shift32<1>(a); };
  auto four = [](Int<L> a) INT8D_INLINE { return L::template shift32<2>(a); };
  auto three = [&](Int<L> a) INT8D_INLINE { return add(a, twice(a)); };
  if constexpr (N == 4) {
    const Int<L> a = add(m[1], m[2]), b = sub(m[1], m[2]);
    const Int<L> c = add(m[3], m[4]), d = sub(m[3], m[4]);
    y[0] = add(add(m[0], a), c);
    y[1] = add(b, twice(d));
    y[2] = add(a, four(c));
    y[3] = add(add(b, L::template shift32<3>(d)), four(m[5]));
  } else if constexpr (N == 3) {
    const Int<L> a = three(m[1]), b = add(a, m[2]), c = four(m[3]);
    y[0] = add(add(twice(m[0]), b), c);
    y[1] = add(sub(a, m[2]), twice(c));
    y[2] = add(add(b, four(c)), four(m[4]));
  } else {
    y[0] = sub(four(m[0]), three(add(m[1], m[2])));
    y[1] = add(three(sub(m[2], m[1])), four(m[3]));
  }
}

// The points of G g come in pairs that share most of their sums: 0 and infinity, 1 and -1, 2 and -2.
constexpr int kPairs[3][2] = {{0, 5}, {1, 2}, {3, 4}};

template <typename L, int Pair>
INT8D_INLINE inline void transform_weight(const Int<L> (&g)[3], Int<L>& first, Int<L>& second) {
  Int<L> factor = L::all16(Pair == 0 ? 6 : -4);
  asm("" : "+x"(factor));  // a product is one instruction, the shifts and sums it could be are up to three
  if constexpr (Pair == 0) {
    first = L::mul16(g[0], factor);
    second = L::mul16(g[2], factor);
  } else if constexpr (Pair == 1) {
    const Int<L> ends = L::add16(g[0], g[2]);
    first = L::mul16(L::add16(ends, g[1]), factor);
    second = L::mul16(L::sub16(ends, g[1]), factor);
  } else {
    const Int<L> ends = L::add16(g[0], L::template shift16<2>(g[2])), middle = L::add16(g[1], g[1]);
    first = L::add16(ends, middle);
    second = L::sub16(ends, middle);
  }
}

// A run of tiles in a plane, shared out over products: `blocks` of `size` tiles, the first `larger` of one more.
struct Run {
  int begin, blocks, size, larger;
};

// A chunk: tiles first .. last - 1, and where their values lie. A tile of the last row or column, where those are of
// F(3) or F(2), has no values in some planes (WinogradGrid::lacks). In all planes the tiles lie in the order
//   last row and last column | last column | whole | last row
// so that those with values are one run, and a tile has the same place in all.
struct Chunk {
  const ConvCall& call;
  const ConvShape& s;
  WinogradGrid grid;
  WinogradScratch scratch;
  uint8_t *v, *m, *u;
  int first, last;
  int begin[5] = {};  // of each kind's tiles, in that order, and the end
  Run runs[2][2];     // of planes; by whether tiles of the last row, or column, have no values

  static int kind(bool last_row, bool last_column) { return last_row ? (last_column ? 0 : 3) : (last_column ? 1 : 2); }
  int kind_of(int tile) const {
    const int row = tile % grid.tiles() / grid.columns, column = tile % grid.columns;
    return kind(grid.row_outputs(row) < 4, grid.column_outputs(column) < 4);
  }

  Chunk(const ConvCall& c, int first_tile, int last_tile)
      : call(c),
        s(c.packed->shape),
        grid(s),
        scratch(s, c.packed->winograd),
        v(c.scratch),
        m(v + kPlanes * scratch.v_plane),
        u(m + kPlanes * scratch.m_plane),
        first(first_tile),
        last(last_tile) {
    for (int tile = first; tile < last; ++tile) ++begin[kind_of(tile) + 1];
    for (int i = 0; i < 4; ++i) begin[i + 1] += begin[i];
    const int rows = c.packed->winograd.rows;
    for (int r = 0; r < 2; ++r)
      for (int column = 0; column < 2; ++column) {
        const int from = begin[column ? 2 : r ? 1 : 0], count = begin[r ? 3 : 4] - from;
        const int blocks = (count + rows - 1) / rows;
        runs[r][column] = {from, blocks, blocks ? count / blocks : 0, blocks ? count % blocks : 0};
      }
  }

  const Run& run(int plane) const {
    return runs[WinogradGrid::lacks(grid.last_row, plane / 6)][WinogradGrid::lacks(grid.last_column, plane % 6)];
  }
};

// run(n, y, x, its place in the planes) for every tile of a chunk, with the tile's size as constants.
template <typename F>
void each_tile(const Chunk& k, F run) {
  auto sized = [](int outputs, auto f) {
    if (outputs == 4)
      f(std::integral_constant<int, 4>());
    else if (outputs == 3)
      f(std::integral_constant<int, 3>());
    else
      f(std::integral_constant<int, 2>());
  };
  int n = k.first / k.grid.tiles(), row = k.first % k.grid.tiles() / k.grid.columns, column = k.first % k.grid.columns;
  int place[4] = {k.begin[0], k.begin[1], k.begin[2], k.begin[3]};
  for (int tile = k.first; tile < k.last; ++tile) {
    const int rows = k.grid.row_outputs(row), columns = k.grid.column_outputs(column);
    const int at = place[Chunk::kind(rows < 4, columns < 4)]++;
    sized(rows, [&](auto r) {
      sized(columns, [&](auto c) {
        run.template operator()<decltype(r)::value, decltype(c)::value>(n, row * 4, column * 4, at);
      });
    });
    if (++column < k.grid.columns) continue;
    column = 0;
    if (++row < k.grid.rows) continue;
    row = 0;
    ++n;
  }
}

// One tile of R x C outputs, whose first one is (y, x) of image n.
template <typename L, int R, int C>
void transform_inputs(const Chunk& k, int n, int y, int x, int at) {
  const View in = k.call.in;
  const uint8_t* from = in.at(n, y - k.s.pad_top, x - k.s.pad_left);
  const size_t plane = k.scratch.v_plane, channels = static_cast<size_t>(k.s.ic);
  uint8_t* to = k.v + static_cast<size_t>(at) * channels * 2;
  for (size_t c = 0; c < channels; c += 2 * L::kDwords, to += 4 * L::kDwords) {
    Int<L> columns[R + 2][C + 2];
    for (int j = 0; j < C + 2; ++j) {
      Int<L> d[R + 2], v[R + 2];
      for (int i = 0; i < R + 2; ++i) d[i] = L::load_words(from + i * in.row + j * in.pixel + c);
      transform_input<L, R>(d, v);
      for (int i = 0; i < R + 2; ++i) columns[i][j] = v[i];
    }
    for (int i = 0; i < R + 2; ++i) {
      Int<L> v[C + 2];
      transform_input<L, C>(columns[i], v);
      uint8_t* row = to + static_cast<size_t>(plane_of<R>(i) * 6) * plane;
      for (int j = 0; j < C + 2; ++j) L::store(row + static_cast<size_t>(plane_of<C>(j)) * plane, v[j]);
    }
  }
}

template <typename L>
constexpr size_t kUPlane = winograd_u_plane(2 * L::kDwords);

// The 12 planes of a pair of rows of U, for kExpanded channels: [12][channel / 2][panel][2], from weights
// [channel / 2][9][panel][2]. A third of the weights that come next is fetched on the way: they may lie beyond L2.
template <typename L, int Pair>
void transform_weights(const Chunk& k, const int8_t* w) {
  constexpr int kBytes = L::kDwords * 2;  // that fill a register with words: half a panel's
  constexpr int kThird = 3 * 2 * kBytes;
  const int8_t* next = w + (3 + Pair) * (kExpanded / 2) * kThird;
  for (uint8_t* to = k.u; to < k.u + kExpanded * 2 * kBytes; w += 9 * 2 * kBytes - 2 * kBytes) {
    for (int i = 0; i < kThird; i += kThird / 2) __builtin_prefetch(next + i);
    next += kThird;
    for (int half = 0; half < 2; ++half, to += 2 * kBytes, w += kBytes) {
      Int<L> rows[2][3];
      for (int x = 0; x < 3; ++x) {
        Int<L> g[3];
        for (int y = 0; y < 3; ++y) g[y] = L::load_signed_words(w + (y * 3 + x) * 2 * kBytes);
        transform_weight<L, Pair>(g, rows[0][x], rows[1][x]);
      }
      for (int i = 0; i < 2; ++i) {
        Int<L> u[6];
        transform_weight<L, 0>(rows[i], u[0], u[5]);
        transform_weight<L, 1>(rows[i], u[1], u[2]);
        transform_weight<L, 2>(rows[i], u[3], u[4]);
        for (int j = 0; j < 6; ++j) L::store(to + static_cast<size_t>(i * 6 + j) * kUPlane<L>, u[j]);
      }
    }
  }
}

template <typename L>
struct Epilogue {
  typename L::Finish finish;
  std::optional<typename L::Sum> sum;
};

// One tile of R x C outputs, for the channels of a panel.
template <typename L, int R, int C>
void transform_outputs(const Chunk& k, int n, int y, int x, int at, int panel, const Epilogue<L>& e) {
  constexpr int kChannels = L::kDwords, kRow = 2 * kChannels * 4;
  const ConvPacked& p = *k.call.packed;
  for (int half = 0; half < 2; ++half) {
    const int oc = (panel * 2 + half) * kChannels;
    if (oc >= k.s.oc) return;
    const auto mask = L::mask(k.s.oc - oc);
    const size_t plane = k.scratch.m_plane;
    const uint8_t* from = k.m + static_cast<size_t>(at) * kRow + half * (kRow / 2);
    Int<L> rows[C + 2][R];
    for (int j = 0; j < C + 2; ++j) {
      Int<L> m[R + 2];
      for (int i = 0; i < R + 2; ++i)
        m[i] = L::load(from + static_cast<size_t>(plane_of<R>(i) * 6 + plane_of<C>(j)) * plane);
      transform_output<L, R>(m, rows[j]);
    }
    const Int<L> bias = L::load(p.bias.data() + oc), inverse = L::all32(0x38E38E39);
    const auto multiplier = L::load_floats(p.multiplier.data() + oc);
    for (int i = 0; i < R; ++i) {
      Int<L> m[C + 2], q[4] = {};
      for (int j = 0; j < C + 2; ++j) m[j] = rows[j][i];
      Int<L> sums[C];
      transform_output<L, C>(m, sums);
      const uint8_t* residual = e.sum ? k.call.residual.at(n, y + i, x) + oc : nullptr;
      for (int j = 0; j < C; ++j) {
        const Int<L> acc = L::add32(L::mul32(sums[j], inverse), bias);
        q[j] = e.sum ? L::sum_narrow(acc, multiplier, L::load_bytes(residual + j * k.call.residual.pixel, mask), *e.sum)
                     : L::round_narrow(acc, multiplier);
      }
      const Int<L> bytes = L::finish4(q[0], q[1], q[2], q[3], e.finish);
      uint8_t* out = k.call.out.at(n, y + i, x) + oc;
      unroll<C>([&](auto j) INT8D_INLINE { L::template store_bytes<j>(out + j * k.call.out.pixel, bytes, mask); });
    }
  }
}

// M of a plane from V and U of some pairs of channels, or, to `add`, M and theirs.
template <typename L>
void multiply_plane(const Chunk& k, int plane, int pair, int pairs, const int16_t* u, size_t ahead, bool add) {
  const ptrdiff_t stride = static_cast<ptrdiff_t>(k.s.ic) * 2;
  constexpr ptrdiff_t kRow = 8 * L::kDwords;
  const Run& run = k.run(plane);
  const uint8_t* v = k.v + static_cast<size_t>(plane) * k.scratch.v_plane + run.begin * stride + pair * 4;
  uint8_t* m = k.m + static_cast<size_t>(plane) * k.scratch.m_plane + run.begin * kRow;
  for (int block = 0; block < run.blocks; ++block) {
    const int rows = run.size + (block < run.larger);
    L::multiply(rows, v, stride, u, pairs, ahead, m, add);
    v += rows * stride;
    m += rows * kRow;
  }
}

template <typename L>
void run_chunk(const Chunk& k, const Epilogue<L>& e) {
  constexpr size_t kPanel = 2 * L::kDwords;
  const ConvPacked& p = *k.call.packed;
  assert(p.panel == kPanel);
  each_tile(k, [&]<int R, int C>(int n, int y, int x, int at) { transform_inputs<L, R, C>(k, n, y, x, at); });
  const int pairs = k.s.ic / 2;
  for (int panel = k.call.panel_begin; panel < k.call.panel_end; ++panel) {
    if (p.weight.size()) {
      for (int c = 0; c < k.s.ic; c += kExpanded)
        unroll<3>([&](auto pair) {
          transform_weights<L, pair>(k, p.weight.data() + (static_cast<size_t>(panel) * k.s.ic + c) * 9 * kPanel);
          for (int i = 0; i < 12; ++i)
            multiply_plane<L>(k, kPairs[pair][i / 6] * 6 + i % 6, c / 2, kExpanded / 2,
                              reinterpret_cast<const int16_t*>(k.u + i * kUPlane<L>), 0, c > 0);
        });
    } else {
      const size_t plane_words = static_cast<size_t>(pairs) * kPanel * 2;
      const int16_t* u = p.weight16.data() + static_cast<size_t>(panel) * kPlanes * plane_words;
      for (int plane = 0; plane < kPlanes; ++plane, u += plane_words)
        multiply_plane<L>(k, plane, 0, pairs, u, 2 * plane_words, false);
    }
    each_tile(k,
              [&]<int R, int C>(int n, int y, int x, int at) { transform_outputs<L, R, C>(k, n, y, x, at, panel, e); });
  }
}

template <typename L>
void run(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const Output output = p.output(call);
  Epilogue<L> e{typename L::Finish(output), {}};
  if (call.add) e.sum.emplace(output, *call.add);
  const int total = call.row_end - call.row_begin, most = winograd_chunk(p.shape, p.winograd);
  const int chunks = (total + most - 1) / most;
  for (int chunk = 0; chunk < chunks; ++chunk)
    run_chunk(Chunk(call, call.row_begin + total * chunk / chunks, call.row_begin + total * (chunk + 1) / chunks), e);
}

}  // namespace
}  // namespace int8d::winograd
