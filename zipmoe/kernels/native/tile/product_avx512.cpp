// The order "pairs" from a matrix in tile form, with AVX-512 VBMI2 and BF16.
//
// Up to eight rows of x are computed while a group's weights are in registers. With more rows, some groups are decoded
// to a panel in the first-level cache, and bundles of up to eight rows are computed from the panel.
#include <algorithm>

#include "linear/pairs_avx512.h"
#include "tile/decode_avx512.h"
#include "tile/tile.h"

namespace zipmoe::tile {
namespace {

using linear::Task;

constexpr size_t kVectors = kTileOutputs / 16;
constexpr size_t kBundleRows = 8;
constexpr size_t kPanelGroups = 64;
constexpr size_t kAhead = 32768;  // bytes from a block to what is prefetched while its first group is computed
// Lines that are prefetched for two groups; a coded block has fewer bytes, a raw block just as many.
constexpr size_t kCodedLines = 3, kRawLines = 4;

struct Scratch {
  Escapes escapes;
  alignas(64) uint8_t panel[kPanelGroups * kGroup * sizeof(uint16_t)];
  __m512 sums[];  // of the block, of the part and in total: for each row and vector of outputs
};

size_t bundles_of(size_t m) { return (m + kBundleRows - 1) / kBundleRows; }
size_t pairs_of(size_t k) { return (k + kGroupInputs - 1) / kGroupInputs; }

// Rows begin .. end - 1 of bundle `index`; bundles have nearly equal numbers of rows.
struct Bundle {
  size_t begin, end;
  Bundle(size_t m, size_t index) : begin(index * m / bundles_of(m)), end((index + 1) * m / bundles_of(m)) {}
};

// --- groups times the rows of a bundle -------------------------------------------------------------------------------

template <size_t kRows, class Groups>
ZIPMOE_INLINE void add_group(Groups& groups, const uint32_t* x, __m512 (&sums)[kRows][kVectors]) {
  __m512i low, high;
  groups.next(&low, &high);
#pragma GCC unroll 8
  for (size_t row = 0; row < kRows; ++row) {
    const __m512i inputs = linear::pair_of(reinterpret_cast<const uint16_t*>(x + row));
    sums[row][0] = linear::multiply_add(sums[row][0], low, inputs);
    sums[row][1] = linear::multiply_add(sums[row][1], high, inputs);
  }
}

// Adds the products of `count` groups to the sums and prefetches kLines lines for every two groups.
template <size_t kRows, size_t kLines, class Groups>
void add(Groups* from, size_t count, const uint32_t* x, __m512* sums, const uint8_t* ahead) {
  Groups groups = *from;
  __m512 sum[kRows][kVectors];
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t v = 0; v < kVectors; ++v) sum[row][v] = sums[row * kVectors + v];
  }
  for (size_t i = 0; i < count / 2; ++i, x += 2 * kRows, ahead += kLines * kLine) {
    for (size_t line = 0; line < kLines; ++line) _mm_prefetch(ahead + line * kLine, _MM_HINT_T1);
    add_group<kRows>(groups, x, sum);
    add_group<kRows>(groups, x + kRows, sum);
  }
  if (count % 2 != 0) add_group<kRows>(groups, x, sum);
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t v = 0; v < kVectors; ++v) sums[row * kVectors + v] = sum[row][v];
  }
  *from = groups;
}

template <class Groups>
using Add = void (*)(Groups*, size_t, const uint32_t*, __m512*, const uint8_t*);

template <size_t kLines, class Groups>
constexpr Add<Groups> kAdd[kBundleRows] = {add<1, kLines, Groups>, add<2, kLines, Groups>, add<3, kLines, Groups>,
                                           add<4, kLines, Groups>, add<5, kLines, Groups>, add<6, kLines, Groups>,
                                           add<7, kLines, Groups>, add<8, kLines, Groups>};

// --- a tile ----------------------------------------------------------------------------------------------------------

struct Product {
  const Task& task;
  const uint32_t* packed;
  Scratch* scratch;

  __m512* sums() const { return scratch->sums; }
  __m512* parts() const { return sums() + task.m * kVectors; }
  __m512* totals() const { return parts() + task.m * kVectors; }

  void clear_sums() const {
    for (size_t i = 0; i < task.m * kVectors; ++i) sums()[i] = _mm512_setzero_ps();
  }

  template <size_t kLines, class Groups>
  void add_bundle(size_t index, Groups* groups, size_t first_pair, size_t count, const uint8_t* ahead) const {
    const Bundle bundle(task.m, index);
    const size_t rows = bundle.end - bundle.begin;
    const uint32_t* x = packed + bundle.begin * pairs_of(task.k) + first_pair * rows;
    kAdd<kLines, Groups>[rows - 1](groups, count, x, sums() + bundle.begin * kVectors, ahead);
  }

  // The next `count` groups of a raw block.
  void add_groups(Plain* groups, size_t first_pair, size_t count, const uint8_t* ahead) const {
    const Plain begin = *groups;
    add_bundle<kRawLines>(0, groups, first_pair, count, ahead);
    for (size_t index = 1; index < bundles_of(task.m); ++index) {
      Plain again = begin;
      add_bundle<0>(index, &again, first_pair, count, nullptr);
    }
  }

  // The next `count` groups of a coded block.
  template <bool kHasBases>
  void add_groups(Coded<kHasBases>* groups, size_t first_pair, size_t count, const uint8_t* ahead) const {
    if (task.m <= kBundleRows) return add_bundle<kCodedLines>(0, groups, first_pair, count, ahead);
    for (size_t done = 0; done < count; done += kPanelGroups) {
      const size_t some = linear::smaller(count - done, kPanelGroups);
      decode(groups, some, ahead + done / 2 * kCodedLines * kLine);
      for (size_t index = 0; index < bundles_of(task.m); ++index) {
        Plain panel(scratch->panel);
        add_bundle<0>(index, &panel, first_pair + done, some, nullptr);
      }
    }
  }

  template <class Groups>
  void decode(Groups* from, size_t count, const uint8_t* ahead) const {
    Groups groups = *from;
    uint8_t* to = scratch->panel;
    for (size_t i = 0; i < count; ++i, to += 128) {
      for (size_t line = i % 2; line < kCodedLines; line += 2) {
        _mm_prefetch(ahead + (i / 2 * kCodedLines + line) * kLine, _MM_HINT_T1);
      }
      __m512i low, high;
      groups.next(&low, &high);
      _mm512_store_si512(to, low);
      _mm512_store_si512(to + 64, high);
    }
    *from = groups;
  }

  // The last group of an odd number of inputs. Its second input is padding, which may be anything, also infinite.
  template <class Groups>
  void add_half_group(Groups* groups, size_t pair) const {
    const __m512i first_input = _mm512_set1_epi32(0xffff);
    __m512i low, high;
    groups->next(&low, &high);
    _mm512_store_si512(scratch->panel, _mm512_and_si512(low, first_input));
    _mm512_store_si512(scratch->panel + 64, _mm512_and_si512(high, first_input));
    for (size_t index = 0; index < bundles_of(task.m); ++index) {
      Plain panel(scratch->panel);
      add_bundle<0>(index, &panel, pair, 1, nullptr);
    }
  }

  // Adds the inputs begin .. end - 1, which `groups` decodes. Sums end where a block of the order ends, not where a
  // block of the tile does.
  template <size_t kLines, class Groups>
  void add_block(Groups* groups, size_t begin, size_t end, const uint8_t* ahead) const {
    for (size_t at = begin; at < end;) {
      const size_t order_begin = at / task.k_block * task.k_block;
      const size_t stop = linear::smaller(end, order_begin + task.k_block);
      const size_t first_pair = at / kGroupInputs, count = (stop - at) / kGroupInputs;
      add_groups(groups, first_pair, count, ahead);
      if ((stop - at) % kGroupInputs != 0) add_half_group(groups, first_pair + count);
      ahead += count / 2 * kLines * kLine;
      at = stop;
      if (at != order_begin + task.k_block && at != task.k) continue;
      for (size_t i = 0; i < task.m * kVectors; ++i) {
        linear::add_block(task, order_begin, at, sums()[i], &parts()[i], &totals()[i]);
      }
      clear_sums();
    }
  }

  // Adds the inputs begin .. end - 1 of a coded block. Returns whether the block was sound.
  template <bool kHasBases>
  bool add_coded(const Tile& tile, const Block& block, size_t begin, size_t end, const uint8_t* ahead) const {
    const uint8_t* escapes = expand(block, tile.table, &scratch->escapes);
    if (escapes == nullptr) return false;
    Coded<kHasBases> groups(tile, block, escapes);
    add_block<kCodedLines>(&groups, begin, end, ahead);
    return groups.escapes() == escapes + block.codes[1];
  }

  bool compute(const Matrix& matrix, size_t index) const {
    Tile tile;
    if (!open_tile(matrix, index, &tile)) return false;
    clear_sums();
    for (size_t i = 0; i < task.m * kVectors; ++i) totals()[i] = _mm512_setzero_ps();
    const bool has_bases = std::any_of(tile.bases, tile.bases + kTileOutputs, [](uint8_t base) { return base != 0; });
    const uint8_t* at = tile.blocks;
    for (size_t begin = 0; begin < task.k; begin += kBlockInputs) {
      Block block;
      if (!open_block(at, tile.end, matrix.shape.groups(begin), &block)) return false;
      const size_t end = linear::smaller(begin + kBlockInputs, task.k);
      if (block.kind == Kind::kRaw) {
        Plain groups(block.weights);
        add_block<kRawLines>(&groups, begin, end, at + kAhead);
      } else {
        const bool sound = has_bases ? add_coded<true>(tile, block, begin, end, at + kAhead)
                                     : add_coded<false>(tile, block, begin, end, at + kAhead);
        if (!sound) return false;
      }
      at = block.end;
    }
    if (at != tile.end) return false;
    finish(index * kTileOutputs);
    return true;
  }

  void finish(size_t first) const {
    for (size_t row = 0; row < task.m; ++row) {
      for (size_t v = 0; v < kVectors && first + 16 * v < task.n; ++v) {
        const size_t count = linear::smaller(task.n - first - 16 * v, 16);
        linear::finish(task, row, first + 16 * v, count, totals()[row * kVectors + v]);
      }
    }
  }
};

}  // namespace

size_t packed_bytes_avx512(size_t m, size_t k) { return m * pairs_of(k) * sizeof(uint32_t); }

size_t scratch_bytes_avx512(size_t m) { return sizeof(Scratch) + 3 * m * kVectors * sizeof(__m512); }

void pack_avx512(const Task& task, void* packed) {
  uint32_t* to = static_cast<uint32_t*>(packed);
  for (size_t index = 0; index < bundles_of(task.m); ++index) {
    const Bundle bundle(task.m, index);
    for (size_t pair = 0; pair < task.k / 2; ++pair) {
      for (size_t row = bundle.begin; row < bundle.end; ++row) memcpy(to++, task.x + row * task.k + 2 * pair, 4);
    }
    if (task.k % 2 == 0) continue;
    for (size_t row = bundle.begin; row < bundle.end; ++row) *to++ = task.x[row * task.k + task.k - 1];
  }
}

bool multiply_avx512(const Task& task, const void* packed, const Matrix& matrix, size_t first, size_t count,
                     void* scratch) {
  const Product product = {task, static_cast<const uint32_t*>(packed), static_cast<Scratch*>(scratch)};
  for (size_t i = 0; i < count; ++i) {
    if (!product.compute(matrix, first + i)) return false;
  }
  return true;
}

}  // namespace zipmoe::tile
