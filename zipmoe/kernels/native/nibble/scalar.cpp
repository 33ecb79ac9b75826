// Nibble form in portable C++. A product recovers a tile and multiplies it in the readable order of linear/scalar.cpp.
#include "nibble/nibble.h"

namespace zipmoe::nibble {
namespace {

size_t code(const Pair& rows, size_t pass, size_t groups, const uint8_t* tables, uint8_t* out, uint8_t* listed,
            size_t most) {
  constexpr uint8_t kNone = 0xff;
  uint8_t ranks[kOutputs][128];
  memset(ranks, kNone, sizeof ranks);
  for (size_t output = 0; output < kOutputs; ++output) {
    for (size_t rank = 0; rank < kRanks; ++rank) {
      ranks[output][tables[output * kRanks + rank]] = static_cast<uint8_t>(rank);
    }
  }
  size_t exceptions = 0;
  for (size_t i = 0; i < groups; ++i, out += kGroupBytes) {
    memset(out + kGroup, 0, kGroup / 2);
    for (size_t place = 0; place < kGroup; ++place) {
      const size_t output = output_of(place);
      const uint16_t weight = rows.row[output][i * kGroupInputs + input_of(place, pass)];
      out[place] = static_cast<uint8_t>(weight);
      uint8_t rank = ranks[output][weight >> 8 & 0x7f];
      if (rank == kNone) {
        rank = 0;
        if (exceptions < most) {
          put_exception(rows, pass, i * kGroup + place, listed + exceptions * kExceptionBytes);
        }
        ++exceptions;
      }
      const int nibble = weight >> 15 << 3 | rank;
      uint8_t* both = out + kGroup + place % kOutputPlaces;
      *both = static_cast<uint8_t>(*both | nibble << 4 * output);
    }
  }
  return exceptions;
}

void recover(const Tile& tile, size_t pass, uint16_t* const* rows) {
  const uint8_t* group = tile.groups[pass];
  for (size_t i = 0; i < tile.coded; ++i, group += kGroupBytes) {
    for (size_t place = 0; place < kGroup; ++place) {
      const size_t output = output_of(place);
      const int nibble = group[kGroup + place % kOutputPlaces] >> 4 * output & 15;
      const int high = tile.tables[output * kRanks + (nibble & 7)] | nibble >> 3 << 7;
      rows[output][i * kGroupInputs + input_of(place, pass)] = static_cast<uint16_t>(high << 8 | group[place]);
    }
  }
}

size_t no_bytes(size_t, size_t) { return 0; }
void pack_nothing(const linear::Task&, void*) {}

size_t scratch_bytes(size_t, size_t k) { return kOutputs * k * sizeof(uint16_t); }

bool multiply(const linear::Task& task, const void*, const Matrix& matrix, size_t first, size_t count, void* scratch);

constexpr Kernel kKernel = {code, recover, no_bytes, pack_nothing, scratch_bytes, multiply};

bool multiply(const linear::Task& task, const void*, const Matrix& matrix, size_t first, size_t count, void* scratch) {
  uint16_t* weights = static_cast<uint16_t*>(scratch);
  uint16_t* const rows[kOutputs] = {weights, weights + task.k};
  for (size_t index = first; index < first + count; ++index) {
    Tile tile;
    if (!open_tile(matrix, index, &tile)) return false;
    recover_tile(kKernel, tile, task.k, rows);
    const size_t output = index * kOutputs, left = task.n - output;
    linear::kernel_scalar(linear::kLanes)->multiply(task, nullptr, weights, output, left < kOutputs ? left : kOutputs,
                                                    nullptr);
  }
  return true;
}

}  // namespace

const Kernel* kernel_scalar() { return &kKernel; }

}  // namespace zipmoe::nibble
