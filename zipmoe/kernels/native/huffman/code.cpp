#include "huffman/code.h"

#include <string.h>

namespace zipmoe::huffman {
namespace {

struct Leaf {
  uint64_t count;
  uint8_t symbol;
};

// Sorts leaves by count, then by symbol. The insertion keeps the order of symbols with equal counts.
int sorted_leaves(const uint32_t counts[kSymbols], Leaf leaves[kSymbols]) {
  int leaf_count = 0;
  for (int symbol = 0; symbol < kSymbols; ++symbol) {
    if (counts[symbol] == 0) continue;
    int place = leaf_count++;
    for (; place > 0 && leaves[place - 1].count > counts[symbol]; --place) leaves[place] = leaves[place - 1];
    leaves[place] = {counts[symbol], static_cast<uint8_t>(symbol)};
  }
  return leaf_count;
}

}  // namespace

// Package-merge. Level by level, deepest first, the leaves are merged with the pairs of the previous level. Of the last
// level the first 2m - 2 items are taken, where m is the number of leaves. With a pair, the two items of the pair are
// taken. The length of a leaf's codeword is the number of times that the leaf is taken. The taken leaves of a level are
// always the first leaves, so their number is enough.
Lengths shortest_lengths(const uint32_t counts[kSymbols]) {
  Leaf leaves[kSymbols];
  const int leaf_count = sorted_leaves(counts, leaves);
  bool is_leaf[kLongest][2 * kSymbols];
  uint64_t weights[2][2 * kSymbols];
  int item_count = 0;
  for (int level = 0; level < kLongest; ++level) {
    const uint64_t* before = weights[level % 2];
    uint64_t* merged = weights[(level + 1) % 2];
    const int pair_count = item_count / 2;
    item_count = 0;
    for (int leaf = 0, pair = 0; leaf < leaf_count || pair < pair_count; ++item_count) {
      const uint64_t pair_weight = pair < pair_count ? before[2 * pair] + before[2 * pair + 1] : 0;
      const bool take_leaf = pair == pair_count || (leaf < leaf_count && leaves[leaf].count <= pair_weight);
      is_leaf[level][item_count] = take_leaf;
      merged[item_count] = take_leaf ? leaves[leaf].count : pair_weight;
      ++(take_leaf ? leaf : pair);
    }
  }
  Lengths lengths;
  memset(&lengths, 0, sizeof lengths);
  int taken = 2 * leaf_count - 2;
  for (int level = kLongest - 1; level >= 0; --level) {
    int leaves_taken = 0;
    for (int item = 0; item < taken; ++item) leaves_taken += is_leaf[level][item];
    for (int leaf = 0; leaf < leaves_taken; ++leaf) ++lengths.of[leaves[leaf].symbol];
    taken = 2 * (taken - leaves_taken);
  }
  return lengths;
}

bool is_complete(const Lengths& lengths) {
  uint32_t used = 0;
  for (const uint8_t length : lengths.of) {
    if (length > kLongest) return false;
    if (length > 0) used += 1u << (kLongest - length);
  }
  return used == 1u << kLongest;
}

Code canonical_code(const Lengths& lengths) {
  int counts[kLongest + 1] = {};
  for (const uint8_t length : lengths.of) ++counts[length];
  int places[kLongest + 2] = {};
  uint32_t next[kLongest + 2] = {};  // the next codeword of each length
  for (int length = 1; length <= kLongest; ++length) {
    places[length + 1] = places[length] + counts[length];
    next[length + 1] = (next[length] + static_cast<uint32_t>(counts[length])) << 1;
  }
  Code code;
  memset(&code, 0, sizeof code);
  code.count = places[kLongest + 1];
  for (int symbol = 0; symbol < kSymbols; ++symbol) {
    const int length = lengths.of[symbol];
    if (length == 0) continue;
    code.symbols[places[length]++] = static_cast<uint8_t>(symbol);
    const uint32_t codeword = next[length]++;
    for (int bit = 0; bit < length; ++bit) {
      code.bits[symbol] = static_cast<uint16_t>(code.bits[symbol] | (codeword >> bit & 1) << (length - 1 - bit));
    }
  }
  return code;
}

}  // namespace zipmoe::huffman
