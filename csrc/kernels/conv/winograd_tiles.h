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

// 6 0 0 | -4 -4 -4 | -4 4 -4 | 1 2 4 | 1 -2 4 | 0 0 6
template <typename L>
INT8D_INLINE inline void transform_weight(const Int<L> (&g)[3], Int<L> (&u)[6]) {
  Int<L> six = L::all16(6), minus_four = L::all16(-4);
  asm("" : "+x"(six), "+x"(minus_four));  // a product is one instruction, shifts and sums for it would be three
  const Int<L> ends = L::add16(g[0], g[2]), a = L::add16(g[0], L::template shift16<2>(g[2])), b = L::add16(g[1], g[1]);
  u[0] = L::mul16(g[0], six);
  u[1] = L::mul16(L::add16(ends, g[1]), minus_four);
  u[2] = L::mul16(L::sub16(ends, g[1]), minus_four);
  u[3] = L::add16(a, b);
  u[4] = L::sub16(a, b);
  u[5] = L::mul16(g[2], six);
}

// How many tiles have values in a plane; by whether the last row's tiles, or the last column's, lack them.
struct Counts {
  int of[2][2] = {};
};

// A tile on its way through the tiles of a batch.
struct Walk {
  const WinogradGrid& grid;
  int n, row, column;
  Counts before;  // since the walk began: the tile's index in the planes

  Walk(const WinogradGrid& g, int tile)
      : grid(g), n(tile / g.tiles()), row(tile % g.tiles() / g.columns), column(tile % g.columns) {}
  void next() {
    const bool last_row = row == grid.rows - 1, last_column = column == grid.columns - 1;
    for (int r = 0; r < 2; ++r)
      for (int c = 0; c < 2; ++c) before.of[r][c] += !(r && last_row) && !(c && last_column);
    column = last_column ? 0 : column + 1;
    if (!last_column) return;
    row = last_row ? 0 : row + 1;
    n += last_row;
  }
};

// The tiles of a plane, shared out over products: `blocks` of `size` tiles, the first `larger` of them of one more.
struct Split {
  int blocks, size, larger;
};

// A chunk: tiles first .. last - 1, and where their values lie.
struct Chunk {
  const ConvCall& call;
  const ConvShape& s;
  WinogradGrid grid;
  WinogradScratch scratch;
  uint8_t *v, *m, *u;
  int first, last;
  Split splits[2][2];  // as Counts

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
    Walk walk(grid, first);
    for (int tile = first; tile < last; ++tile) walk.next();
    const int rows = c.packed->winograd.rows;
    for (int i = 0; i < 4; ++i) {
      const int count = walk.before.of[i / 2][i % 2], blocks = (count + rows - 1) / rows;
      splits[i / 2][i % 2] = {blocks, blocks ? count / blocks : 0, blocks ? count % blocks : 0};
    }
  }

  template <typename T>
  const T& in_plane(const T (&x)[2][2], int plane) const {
    return x[WinogradGrid::lacks(grid.last_row, plane / 6)][WinogradGrid::lacks(grid.last_column, plane % 6)];
  }
};

// One tile of R x C outputs, whose first one is (y, x) of image n.
template <typename L, int R, int C>
void transform_inputs(const Chunk& k, int n, int y, int x, const Counts& at) {
  const View& in = k.call.in;
  const uint8_t* from = in.at(n, y - k.s.pad_top, x - k.s.pad_left);
  const size_t tile = static_cast<size_t>(k.s.ic) * 2;
  uint8_t* to[R + 2][C + 2];
  for (int i = 0; i < R + 2; ++i)
    for (int j = 0; j < C + 2; ++j) {
      const int plane = plane_of<R>(i) * 6 + plane_of<C>(j);
      to[i][j] =
          k.v + static_cast<size_t>(plane) * k.scratch.v_plane + static_cast<size_t>(k.in_plane(at.of, plane)) * tile;
    }
  for (int c = 0; c < k.s.ic; c += 2 * L::kDwords) {
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
      for (int j = 0; j < C + 2; ++j) L::store(to[i][j] + 2 * c, v[j]);
    }
  }
}

// U of `pairs` pairs of channels, [plane][pair][panel][2], from weights [pair][9][panel][2].
template <typename L>
constexpr size_t kUPlane = winograd_u_plane(2 * L::kDwords);

template <typename L>
void transform_weights(const Chunk& k, const int8_t* w, int pairs) {
  constexpr int kBytes = L::kDwords * 2;  // that fill a register with words: half a panel's
  for (int pair = 0; pair < pairs; ++pair, w += 9 * 2 * kBytes)
    for (int half = 0; half < 2; ++half) {
      uint8_t* to = k.u + pair * 4 * kBytes + half * 2 * kBytes;
      Int<L> rows[6][3];
      for (int x = 0; x < 3; ++x) {
        Int<L> g[3], u[6];
        for (int y = 0; y < 3; ++y) g[y] = L::load_signed_words(w + (y * 3 + x) * 2 * kBytes + half * kBytes);
        transform_weight<L>(g, u);
        for (int i = 0; i < 6; ++i) rows[i][x] = u[i];
      }
      for (int i = 0; i < 6; ++i) {
        Int<L> u[6];
        transform_weight<L>(rows[i], u);
        for (int j = 0; j < 6; ++j) L::store(to + static_cast<size_t>(i * 6 + j) * kUPlane<L>, u[j]);
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
void transform_outputs(const Chunk& k, int n, int y, int x, const Counts& at, int panel, const Epilogue<L>& e) {
  constexpr int kChannels = L::kDwords, kRow = 2 * kChannels * 4;
  const ConvPacked& p = *k.call.packed;
  for (int half = 0; half < 2; ++half) {
    const int oc = (panel * 2 + half) * kChannels;
    if (oc >= k.s.oc) return;
    const auto mask = L::mask(k.s.oc - oc);
    Int<L> rows[C + 2][R];
    for (int j = 0; j < C + 2; ++j) {
      Int<L> m[R + 2];
      for (int i = 0; i < R + 2; ++i) {
        const int plane = plane_of<R>(i) * 6 + plane_of<C>(j);
        m[i] = L::load(k.m + static_cast<size_t>(plane) * k.scratch.m_plane +
                       static_cast<size_t>(k.in_plane(at.of, plane)) * kRow + half * (kRow / 2));
      }
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

// run(n, y, x, its indices) for every tile of a chunk, with the tile's size as constants.
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
  Walk walk(k.grid, k.first);
  for (int tile = k.first; tile < k.last; ++tile, walk.next())
    sized(k.grid.row_outputs(walk.row), [&](auto r) {
      sized(k.grid.column_outputs(walk.column), [&](auto c) {
        run.template operator()<decltype(r)::value, decltype(c)::value>(walk.n, walk.row * 4, walk.column * 4,
                                                                        walk.before);
      });
    });
}

// M of a plane from V and U of some pairs of channels, or, to `add`, M and theirs.
template <typename L>
void multiply_plane(const Chunk& k, int plane, int pair, int pairs, const int16_t* u, size_t ahead, bool add) {
  const ptrdiff_t stride = static_cast<ptrdiff_t>(k.s.ic) * 2;
  const uint8_t* v = k.v + static_cast<size_t>(plane) * k.scratch.v_plane + pair * 4;
  uint8_t* m = k.m + static_cast<size_t>(plane) * k.scratch.m_plane;
  const Split split = k.in_plane(k.splits, plane);
  for (int block = 0; block < split.blocks; ++block) {
    const int rows = split.size + (block < split.larger);
    L::multiply(rows, v, stride, u, pairs, ahead, m, add);
    v += rows * stride;
    m += rows * (8 * L::kDwords);
  }
}

template <typename L>
void run_chunk(const Chunk& k, const Epilogue<L>& e) {
  constexpr size_t kPanel = 2 * L::kDwords;
  const ConvPacked& p = *k.call.packed;
  assert(p.panel == kPanel);
  each_tile(k, [&]<int R, int C>(int n, int y, int x, const Counts& at) { transform_inputs<L, R, C>(k, n, y, x, at); });
  const int pairs = k.s.ic / 2;
  for (int panel = k.call.panel_begin; panel < k.call.panel_end; ++panel) {
    if (p.weight.size()) {
      constexpr int kPairs = kExpanded / 2;
      for (int pair = 0; pair < pairs; pair += kPairs) {
        transform_weights<L>(k, p.weight.data() + (static_cast<size_t>(panel) * pairs + pair) * 9 * kPanel * 2, kPairs);
        for (int plane = 0; plane < kPlanes; ++plane)
          multiply_plane<L>(k, plane, pair, kPairs, reinterpret_cast<int16_t*>(k.u + plane * kUPlane<L>), 0, pair > 0);
      }
    } else {
      const size_t plane_words = static_cast<size_t>(pairs) * kPanel * 2;
      const int16_t* u = p.weight16.data() + static_cast<size_t>(panel) * kPlanes * plane_words;
      for (int plane = 0; plane < kPlanes; ++plane, u += plane_words)
        multiply_plane<L>(k, plane, 0, pairs, u, 2 * plane_words, false);
    }
    each_tile(k, [&]<int R, int C>(int n, int y, int x, const Counts& at) {
      transform_outputs<L, R, C>(k, n, y, x, at, panel, e);
    });
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
