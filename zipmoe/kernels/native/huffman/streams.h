// Recovers the six streams of a block together. A single stream would wait for its own table look-ups.
#ifndef ZIPMOE_KERNELS_HUFFMAN_STREAMS_H
#define ZIPMOE_KERNELS_HUFFMAN_STREAMS_H

#include "huffman/chunk.h"
#include "huffman/table.h"

namespace zipmoe::huffman {

// A stream: its input, read from the front, and the memory of its symbols, written from the back.
struct Stream {
  const uint8_t* from;
  unsigned skip;  // bits of *from that are done
  const uint8_t* from_end;
  uint8_t* to;
  uint8_t* to_begin;
};

// Memory that the merge of planes reads and writes next. It is prefetched meanwhile, because the streams leave the
// memory bus idle.
struct Ahead {
  const uint8_t* sm;
  uint8_t* bf16;
};

// Recovers all symbols of all streams. 64 bits can be loaded at `last_load` and before, and no stream ends behind it.
// Returns false if a stream is not exactly as long as its symbols. `ahead` may be null.
bool decode_streams(Stream streams[kStreams], const Table& table, const uint8_t* last_load, Ahead* ahead);

}  // namespace zipmoe::huffman

#endif
