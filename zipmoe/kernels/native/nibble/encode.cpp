// Converts rows of bf16 weights, or a store's parts, to nibble form.
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "cascade/cascade.h"
#include "linear/backend.h"
#include "nibble/nibble.h"
#include "nibble/tables.h"
#include "pool/thread_memory.h"

namespace zipmoe::nibble {
namespace {

thread_local ThreadMemory listed_memory, rows_memory, scratch_memory;

void store32(uint8_t* bytes, size_t value) {
  const uint32_t narrow = static_cast<uint32_t>(value);
  memcpy(bytes, &narrow, sizeof narrow);
}

// Writes one tile after the other.
class Encoder {
 public:
  Encoder(const Kernel& kernel, const Shape& shape, const Room& room) : kernel_(kernel), shape_(shape), room_(room) {}

  Result begin() {
    if (room_.nbytes < shape_.outline_bytes()) return kNoRoom;
    const size_t coded = shape_.coded_bytes(0), raw = shape_.raw_bytes();
    most_ = coded < raw ? (raw - coded) / kExceptionBytes : 0;
    listed_ = static_cast<uint8_t*>(listed_memory.get(most_ * kExceptionBytes + 1));
    if (listed_ == nullptr) return kNoMemory;
    memset(room_.bytes, 0, shape_.outline_bytes());
    store32(room_.bytes, kMagic);
    store32(room_.bytes + 4, shape_.n);
    store32(room_.bytes + 8, shape_.k);
    at_ = shape_.outline_bytes();
    return kDone;
  }

  Result tile(const Pair& rows) {
    store32(room_.bytes + kHeaderBytes + tile_++ * kPlaceBytes, at_ / kUnit);
    const size_t coded = put_coded(rows);
    if (coded != 0) {
      at_ += coded;
      return kDone;
    }
    return put_raw(rows);
  }

  void end() {
    store32(room_.bytes + kHeaderBytes + tile_ * kPlaceBytes, at_ / kUnit);
    *room_.used = at_;
  }

 private:
  const Kernel& kernel_;
  const Shape& shape_;
  const Room& room_;
  uint8_t* listed_ = nullptr;
  size_t most_ = 0;  // exceptions of a tile
  size_t at_ = 0;    // where the next tile begins
  size_t tile_ = 0;

  size_t left() const { return room_.nbytes - at_; }

  // Returns the bytes of the coded tile, or 0 if it is to be raw or has no room.
  size_t put_coded(const Pair& rows) {
    if (shape_.coded_bytes(0) >= shape_.raw_bytes() || shape_.coded_bytes(0) > left()) return 0;
    uint8_t* out = room_.bytes + at_;
    const size_t groups = shape_.groups(), inputs = groups * kGroupInputs;
    for (size_t output = 0; output < kOutputs; ++output) choose(rows.row[output], inputs, out + output * kRanks);
    size_t exceptions = 0;
    for (size_t pass = 0; pass < kPasses; ++pass) {
      const size_t some = kernel_.code(rows, pass, groups, out, out + kTileHeaderBytes + pass * groups * kGroupBytes,
                                       listed_ + exceptions * kExceptionBytes, most_ - exceptions);
      store32(out + kOutputs * kRanks + 4 * pass, some);
      exceptions += some;
      if (exceptions > most_) return 0;
    }
    const size_t nbytes = shape_.coded_bytes(exceptions);
    if (nbytes >= shape_.raw_bytes() || nbytes > left()) return 0;
    uint8_t* at = put_rest(rows, inputs, out + shape_.rest_begin());
    memcpy(at, listed_, exceptions * kExceptionBytes);
    at += exceptions * kExceptionBytes;
    memset(at, 0, static_cast<size_t>(out + nbytes - at));
    return nbytes;
  }

  Result put_raw(const Pair& rows) {
    const size_t nbytes = shape_.raw_bytes();
    if (nbytes > left()) return kNoRoom;
    uint8_t* out = room_.bytes + at_;
    memset(out, 0, kTileHeaderBytes);
    memset(out, kRawTable, kOutputs * kRanks);
    uint8_t* at = put_rest(rows, 0, out + kTileHeaderBytes);
    memset(at, 0, static_cast<size_t>(out + nbytes - at));
    at_ += nbytes;
    return kDone;
  }

  uint8_t* put_rest(const Pair& rows, size_t first, uint8_t* at) const {
    const size_t nbytes = (shape_.k - first) * sizeof(uint16_t);
    for (const uint16_t* row : rows.row) {
      if (nbytes > 0) memcpy(at, row + first, nbytes);
      at += nbytes;
    }
    return at;
  }
};

// Collects recovered rows and encodes two at a time.
class Pairs {
 public:
  Pairs(Encoder* encoder, uint16_t* memory, const Shape& shape)
      : encoder_(*encoder), rows_{{memory, memory + shape.k}}, memory_(memory), k_(shape.k) {}

  // Room for the next row; the row before is complete.
  static uint16_t* next(void* pairs) { return static_cast<Pairs*>(pairs)->next_row(); }

  uint16_t* next_row() {
    flush();
    return memory_ + pending_++ * k_;
  }

  // Encodes the last row, which stands for the missing one of its tile. Returns the first error.
  Result end() {
    flush();
    if (pending_ == 1 && result_ == kDone) result_ = encoder_.tile({{memory_, memory_}});
    return result_;
  }

 private:
  Encoder& encoder_;
  const Pair rows_;
  uint16_t* memory_;
  size_t k_;
  size_t pending_ = 0;
  Result result_ = kDone;

  void flush() {
    if (pending_ < kOutputs) return;
    pending_ = 0;
    if (result_ == kDone) result_ = encoder_.tile(rows_);
  }
};

Result add_part(int backend, const linear::Backend& found, const zipmoe_part& part, size_t k, Pairs* pairs) {
  cascade::Chunk chunk;
  if (!cascade::open_chunk(part.chunk, part.chunk_bytes, part.rows * k, &chunk)) return kCorrupt;
  if (chunk.cols != k) {
    // The chunk of a narrow matrix may have longer rows than the matrix. Such a matrix is small.
    const size_t nbytes = part.rows * k * sizeof(uint16_t);
    uint16_t* weights = static_cast<uint16_t*>(malloc(nbytes + 1));
    if (weights == nullptr) return kNoMemory;
    const int result = zipmoe_cascade_recover(backend, part.chunk, part.chunk_bytes, part.sm,
                                              reinterpret_cast<uint8_t*>(weights), part.rows * k);
    for (size_t row = 0; row < part.rows && result == 0; ++row) {
      memcpy(pairs->next_row(), weights + row * k, k * sizeof(uint16_t));
    }
    free(weights);
    return result == 0 ? kDone : kCorrupt;
  }
  cascade::Scratch* scratch = static_cast<cascade::Scratch*>(scratch_memory.get(sizeof(cascade::Scratch)));
  if (scratch == nullptr) return kNoMemory;
  for (uint32_t index = 0; index < chunk.block_count; ++index) {
    cascade::Block block;
    if (!cascade::open_block(chunk, index, &block)) return kCorrupt;
    const uint8_t* sm = part.sm + size_t{block.first_row} * k;
    if (!found.cascade_rows(block, scratch, sm, {Pairs::next, pairs})) return kCorrupt;
  }
  return kDone;
}

}  // namespace

Result encode_bf16(const Kernel& kernel, const uint16_t* weight, const Shape& shape, const Room& room) {
  Encoder encoder(kernel, shape, room);
  Result result = encoder.begin();
  for (size_t row = 0; row < shape.n && result == kDone; row += kOutputs, weight += kOutputs * shape.k) {
    result = encoder.tile({{weight, row + 1 < shape.n ? weight + shape.k : weight}});
  }
  if (result == kDone) encoder.end();
  return result;
}

Result encode_parts(int backend, const Kernel& kernel, const zipmoe_part* parts, size_t count, const Shape& shape,
                    const Room& room) {
  Encoder encoder(kernel, shape, room);
  Result result = encoder.begin();
  if (result != kDone) return result;
  uint16_t* memory = static_cast<uint16_t*>(rows_memory.get(kOutputs * shape.k * sizeof(uint16_t) + 1));
  if (memory == nullptr) return kNoMemory;
  const linear::Backend found = linear::backend_of(backend, linear::kLanes);
  Pairs pairs(&encoder, memory, shape);
  size_t rows = 0;
  for (size_t i = 0; i < count; ++i) {
    if (parts[i].rows > shape.n - rows) return kCorrupt;
    rows += parts[i].rows;
    result = add_part(backend, found, parts[i], shape.k, &pairs);
    if (result != kDone) return result;
  }
  if (rows != shape.n) return kCorrupt;
  result = pairs.end();
  if (result == kDone) encoder.end();
  return result;
}

}  // namespace zipmoe::nibble
