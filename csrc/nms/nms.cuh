// NMS on CUDA: candidates are put in order, compared in tiles, resolved and collected. Nothing waits for the device, so
// every size is known beforehand: N images of M candidates, n = N * M in all.
//
// 1. Rank order: by image, then invalid ones last, then descending score, then index (stable radix sorts).
// 2. Group order: by class, keeping rank order within it. A segment is a run of one image and one class, and only
//    candidates of a segment meet. Classes are sorted by their low class_bits bits: where there are more classes, two
//    may share a segment, which costs time but changes nothing, since the comparison asks for the class. Without
//    classes, it is rank order.
// 3. Mask kernel: which later candidates of the segment each one would suppress, as bits; all multiprocessors.
// 4. Scan kernel: goes through each segment in order and decides who is kept, 64 candidates at a time; segments that
//    begin in different tiles are independent blocks.
// 5. Collect kernel: the first K kept in rank order.
//
// The mask has up to n * max_segment bits. If this is more than kMaskBytes, steps 3 and 4 take turns over chunks of the
// rows. Everything is integer or a comparison with the same arithmetic as on the CPU: the result is the CPU's, on every
// run.
#pragma once

#include "../common/block.cuh"
#include "../common/scratch.h"
#include "nms_order.cuh"

namespace fastrcnn {

constexpr int kNmsThreads = 256;
constexpr int kCollectThreads = 1024;
#if defined(FASTRCNN_CUDA_EMULATOR)
constexpr size_t kMaskBytes = size_t(256) << 10;  // so that the tests have chunks, too
#else
constexpr size_t kMaskBytes = size_t(128) << 20;
#endif

__device__ __forceinline__ Word bit(int i) { return Word(1) << i; }

// --- 3: mask ---------------------------------------------------------------------------------------------------------

// Rows of tiles [first_tile, last_tile). Word w of row i says which of the 64 candidates of tile (tile of i) + w the
// candidate i would suppress; words beyond the tile where its segment ends are not written.
struct MaskChunk {
  int64_t first_tile, last_tile;
  int64_t words;  // per row
  Word* mask;

  __device__ Word& word(int64_t position, int64_t w) const {
    return mask[(position - first_tile * kWordBits) * words + w];
  }
};

// Work: `stripes` blocks share a row of tiles, taking its tiles in turn, and stop where the segment ends. Four threads
// own a candidate of the row; each compares it with 16 of the 64 candidates of the other tile, which all read from
// shared memory, and writes a quarter of the word.
template <typename T>
__global__ void __launch_bounds__(kNmsThreads)
    nms_mask_kernel(Groups<T> groups, MaskChunk chunk, int stripes, T threshold) {
  constexpr int columns_each = kWordBits / (kNmsThreads / kWordBits);
  static_assert(columns_each == 16, "a thread writes its bits as an uint16_t");
  __shared__ Box<T> boxes[kWordBits];
  __shared__ T areas[kWordBits];
  __shared__ int32_t images[kWordBits];
  __shared__ int64_t classes[kWordBits];
  const int row_in_tile = threadIdx.x % kWordBits, quarter = threadIdx.x / kWordBits;
  const int64_t tile = chunk.first_tile + blockIdx.x / stripes;
  const int64_t row = tile * kWordBits + row_in_tile;
  const int64_t last_row = minimum(tile * kWordBits + kWordBits, groups.n) - 1;
  const bool exists = row < groups.n;
  const Box<T> box = exists ? groups.boxes[row] : Box<T>{0, 0, 0, 0};
  const T box_area = area(box);
  const int32_t image = exists ? groups.images[row] : -1;
  const int64_t class_id = exists && groups.classes != nullptr ? groups.classes[row] : 0;
  for (int64_t w = blockIdx.x % stripes; (tile + w) * kWordBits < groups.n; w += stripes) {
    const int64_t first = (tile + w) * kWordBits;
    if (w > 0 && (groups.images[first] < 0 || !groups.same_segment(last_row, first))) break;
    const int columns = static_cast<int>(minimum<int64_t>(kWordBits, groups.n - first));
    __syncthreads();  // the tile before has been used
    if (static_cast<int>(threadIdx.x) < columns) {
      boxes[threadIdx.x] = groups.boxes[first + threadIdx.x];
      areas[threadIdx.x] = area(boxes[threadIdx.x]);
      images[threadIdx.x] = groups.images[first + threadIdx.x];
      classes[threadIdx.x] = groups.classes != nullptr ? groups.classes[first + threadIdx.x] : 0;
    }
    __syncthreads();
    if (image < 0) continue;
    unsigned suppressed = 0;
#pragma unroll 4
    for (int i = 0; i < columns_each; ++i) {
      const int j = quarter * columns_each + i;
      const bool meets = j < columns && (w > 0 || j > row_in_tile) && images[j] == image && classes[j] == class_id;
      if (meets && suppresses(box, box_area, boxes[j], areas[j], threshold)) suppressed |= 1u << i;
    }
    reinterpret_cast<uint16_t*>(&chunk.word(row, w))[quarter] = static_cast<uint16_t>(suppressed);  // little-endian
  }
}

// --- 4: scan ---------------------------------------------------------------------------------------------------------

// Who is kept of the 64 candidates of a tile, given those that are gone and whom each would suppress (later ones only).
__device__ __forceinline__ Word resolve_tile(Word gone, const Word* suppressed_by) {
  auto low = static_cast<unsigned>(gone), high = static_cast<unsigned>(gone >> 32);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const Word word = suppressed_by[i];
    if (!(low & (1u << i))) {
      low |= static_cast<unsigned>(word);
      high |= static_cast<unsigned>(word >> 32);
    }
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    if (!(high & (1u << i))) high |= static_cast<unsigned>(suppressed_by[32 + i] >> 32);
  }
  return ~(static_cast<Word>(high) << 32 | low);
}

// Work: a block owns the segments that begin in one tile. Those that also end there are resolved together, for they do
// not suppress each other; at most one, the long one, goes on, and the block follows it from tile to tile:
//   - warp 0 takes the sequential decision within the tile: 64 steps on bits, the words of the tile in shared memory;
//   - every thread holds the words that say what 8 of the rows would suppress in one of the 32 tiles ahead (a warp: 8
//     rows of 32 tiles) and then removes what the kept ones among them suppress. These words do not depend on who is
//     kept, so those of the next tile are loaded while this one is resolved.
// Who is removed of the 32 tiles ahead is in shared memory, a ring; of tiles beyond, and between chunks, in `removed`.
// Those words belong to this block alone: it owns the segment that reaches them.
// It stops when the long segment has kept max_output: what comes later in it could not be among the first K.
template <typename T>
__global__ void __launch_bounds__(kNmsThreads)
    nms_scan_kernel(Groups<T> groups, MaskChunk chunk, int64_t max_output, Word* removed, bool* keep) {
  constexpr int rows_each = kWordBits / (kNmsThreads / kWarpSize);
  constexpr int near = kWarpSize;  // tiles ahead that the ring holds
  constexpr int far_each = 4;      // tiles beyond that a thread looks at together
  __shared__ Word own_words[kWordBits];
  __shared__ Word ring[2 * near];
  __shared__ Word kept_words;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarpSize, lane = tid % kWarpSize;
  const int first_row = warp * rows_each;
  const int64_t first_tile = chunk.first_tile + blockIdx.x, first = first_tile * kWordBits;
  const int64_t last = minimum(first + kWordBits, groups.n) - 1;

  // Whatever the first tile of a chunk holds is this block's: a segment that the chunk before it cut is carried on.
  const bool exists = tid < kWordBits && first + tid <= last && groups.images[first + tid] >= 0;
  const bool begins = (tid == 0 && blockIdx.x == 0) || (exists && !groups.same_segment(first + tid - 1, first + tid));
  const Word present = block_bits64(exists), starts = block_bits64(exists && begins);
  if (starts == 0) return;

  // The long segment: from long_first to before long_end.
  const bool is_long = groups.images[last] >= 0;
  const int64_t long_first = is_long ? first + 63 - __clzll(static_cast<long long>(starts)) : groups.n;
  int64_t last_tile = first_tile;
  for (int more = is_long ? kNmsThreads : 0; more == kNmsThreads; last_tile += more) {
    const int64_t ahead = (last_tile + 1 + tid) * kWordBits;
    more = __syncthreads_count(ahead < groups.n && groups.same_segment(last, ahead));
  }
  const int64_t in_last = last_tile * kWordBits + tid;
  const Word at_end = block_bits64(tid < kWordBits && in_last < groups.n && groups.same_segment(last, in_last));
  const int64_t long_end = last_tile * kWordBits + 64 - __clzll(static_cast<long long>(at_end));

  Word own = 0, ahead[rows_each];  // of the tile to come
  const auto load = [&](int64_t tile, bool own_needed) {
    own = own_needed ? chunk.word(tile * kWordBits + tid, 0) : 0;
#pragma unroll
    for (int i = 0; i < rows_each; ++i) {
      const int64_t row = tile * kWordBits + first_row + i;
      const bool needed = row >= long_first && row < long_end && tile + 1 + lane <= last_tile;
      ahead[i] = needed ? chunk.word(row, 1 + lane) : 0;
    }
  };
  // All words of the first tile's present candidates, also of those whose segment another block owns: not resolved.
  load(first_tile, exists);
  if (tid < 2 * near) {
    const bool carried = blockIdx.x == 0 && tid < near && first_tile + tid <= last_tile;
    ring[(first_tile + tid) % (2 * near)] = carried ? removed[first_tile + tid] : 0;
  }
  Word members = present & ~(bit(__ffsll(static_cast<long long>(starts)) - 1) - 1);
  int64_t num_kept = 0;  // of the long segment

  for (int64_t tile = first_tile;; ++tile) {
    if (tid < kWordBits) own_words[tid] = own;
    Word suppressed[rows_each];
#pragma unroll
    for (int i = 0; i < rows_each; ++i) suppressed[i] = ahead[i];
    __syncthreads();  // and what the tile before removed is in the ring
    const bool goes_on = tile < last_tile && tile + 1 < chunk.last_tile;
    if (goes_on) load(tile + 1, tid < kWordBits && (tile + 1) * kWordBits + tid < long_end);
    if (warp == 0) {
      const Word kept = resolve_tile(~members | ring[tile % (2 * near)], own_words);
      if (lane == 0) kept_words = kept;
    } else if (tid == kWarpSize && tile + near <= last_tile) {  // enters the ring, of which it has had no part yet
      ring[(tile + near) % (2 * near)] = atomicOr(&removed[tile + near], Word(0));
    }
    __syncthreads();
    const Word kept = kept_words;
    if (tid < kWordBits && (kept & bit(tid))) {
      const int64_t position = tile * kWordBits + tid;
      keep[groups.ranks != nullptr ? groups.ranks[position] : position] = true;
    }
    Word gone = 0, long_kept = 0;  // of this thread's rows
#pragma unroll
    for (int i = 0; i < rows_each; ++i) {
      if (kept & bit(first_row + i)) {
        gone |= suppressed[i];
        long_kept |= bit(i);
      }
    }
    if (gone != 0) atomicOr(&ring[(tile + 1 + lane) % (2 * near)], gone);
    for (int64_t w = 1 + near + lane; tile + w <= last_tile; w += far_each * near) {
      Word far_gone[far_each] = {};
#pragma unroll
      for (int f = 0; f < far_each; ++f) {  // all loads before the first is used
        if (tile + w + f * near > last_tile) continue;
#pragma unroll
        for (int i = 0; i < rows_each; ++i) {
          const int64_t row = tile * kWordBits + first_row + i;
          if ((long_kept & bit(i)) && row >= long_first && row < long_end) far_gone[f] |= chunk.word(row, w + f * near);
        }
      }
#pragma unroll
      for (int f = 0; f < far_each; ++f) {
        if (far_gone[f] != 0) atomicOr(&removed[tile + w + f * near], far_gone[f]);
      }
    }
    const int64_t before = long_first - tile * kWordBits;  // candidates of this tile that lie before the long segment
    num_kept += __popcll(before > 0 ? (before < kWordBits ? kept >> before : 0) : kept);
    if (num_kept >= max_output) return;
    if (!goes_on) break;
    const int64_t rest = long_end - (tile + 1) * kWordBits;
    members = rest < kWordBits ? bit(static_cast<int>(rest)) - 1 : ~Word(0);
  }
  // The next chunk carries the segment on.
  __syncthreads();
  const int64_t later = chunk.last_tile + tid;
  if (tid < near && later <= last_tile) atomicOr(&removed[later], ring[later % (2 * near)]);
}

// --- 5: collect ------------------------------------------------------------------------------------------------------

// Work: a block owns an image and goes through its candidates in rank order, 1024 at a time.
template <typename T>
__global__ void __launch_bounds__(kCollectThreads)
    nms_collect_kernel(NmsParams<T> p, const int32_t* __restrict__ order, const bool* __restrict__ keep,
                       int64_t* __restrict__ indices, int64_t* __restrict__ count) {
  const int64_t offset = blockIdx.x * p.num_candidates;
  int64_t* own_indices = indices + blockIdx.x * p.max_output;
  int64_t num_kept = 0;
  for (int64_t first = 0; first < p.num_candidates && num_kept < p.max_output; first += kCollectThreads) {
    const int64_t rank = first + threadIdx.x;
    const bool exists = rank < p.num_candidates;
    const int64_t index = exists ? order[offset + rank] : 0;
    const bool kept = exists && keep[offset + rank];
    const BlockRank slot = block_rank<kCollectThreads>(kept);
    if (kept && num_kept + slot.rank < p.max_output) own_indices[num_kept + slot.rank] = index - offset;
    num_kept += slot.total;
    if (!__syncthreads_or(exists && is_valid(p, index))) break;  // all that follow are invalid, too
  }
  num_kept = minimum(num_kept, p.max_output);
  for (int64_t k = num_kept + threadIdx.x; k < p.max_output; k += kCollectThreads) own_indices[k] = 0;
  if (threadIdx.x == 0) count[blockIdx.x] = num_kept;
}

// --- all together ----------------------------------------------------------------------------------------------------

// Where everything lies in one piece of scratch memory.
template <typename T>
struct NmsScratch {
  SortPairs order;          // values: index of each rank
  int32_t* class_order[2];  // with classes: rank of each position, and room for sorting
  Groups<T> groups;
  Decisions decisions;
  int64_t mask_rows, mask_words;
  Word* mask;
  void* sort;
  size_t sort_bytes;
  size_t bytes;  // of all

  // memory: null to learn `bytes`.
  NmsScratch(const NmsParams<T>& p, void* memory) {
    ScratchMemory scratch(memory);
    const int64_t n = p.num_images * p.num_candidates, tiles = blocks_for(n, kWordBits);
    const int64_t class_count = p.class_ids != nullptr ? n : 0;
    scratch.take(order.keys, n);
    scratch.take(order.other_keys, n);
    scratch.take(order.values, n);
    scratch.take(order.other_values, n);
    scratch.take(class_order[0], class_count);
    scratch.take(class_order[1], class_count);
    groups.n = n;
    scratch.take(groups.boxes, n);
    scratch.take(groups.images, n);
    scratch.take(groups.classes, class_count);
    if (class_count == 0) groups.classes = nullptr;
    groups.ranks = nullptr;
    groups.class_bits = p.class_bits;
    scratch.take(decisions.removed, tiles);
    scratch.take(decisions.keep, n);
    mask_words = blocks_for(p.max_segment, kWordBits) + 1;  // a segment can begin anywhere in a tile
    const auto tile_bytes = static_cast<int64_t>(kWordBits * mask_words * sizeof(Word));
    const int64_t tiles_at_once = maximum<int64_t>(1, static_cast<int64_t>(kMaskBytes) / tile_bytes);
    mask_rows = minimum(tiles, tiles_at_once) * kWordBits;
    scratch.take(mask, mask_rows * mask_words);
    sort_bytes = sort_scratch_bytes(n);
    char* sort_memory;
    scratch.take(sort_memory, static_cast<int64_t>(sort_bytes));
    sort = sort_memory;
    bytes = scratch.bytes();
  }
};

// indices: [N, K], count: [N]; K > 0, 0 < N * M < 2^31. memory: NmsScratch(p, nullptr).bytes, aligned to 256. All
// pointers are to device memory.
template <typename T>
void launch_nms(const NmsParams<T>& p, void* memory, int64_t* indices, int64_t* count, cudaStream_t stream) {
  NmsScratch<T> s(p, memory);
  const int64_t n = s.groups.n, tiles = blocks_for(n, kWordBits);

  sort_by_rank(p, n, s.order, s.sort, s.sort_bytes, stream);
  if (p.class_ids != nullptr) {
    SortPairs by_class{s.order.keys, s.order.other_keys, s.class_order[0], s.class_order[1]};
    sort_by_class(p, n, s.order.values, by_class, s.sort, s.sort_bytes, stream);
    s.groups.ranks = by_class.values;
  }
  for_each("nms (groups)", n, WriteGroups<T>{p, s.order.values, s.groups, s.decisions}, stream);

  const int64_t chunk_tiles = s.mask_rows / kWordBits;
  const int stripes = static_cast<int>(minimum<int64_t>(s.mask_words, 32));
  for (int64_t first = 0; first < tiles; first += chunk_tiles) {
    const MaskChunk chunk{first, minimum(first + chunk_tiles, tiles), s.mask_words, s.mask};
    const int64_t rows = chunk.last_tile - chunk.first_tile;
    launch("nms (mask)", &nms_mask_kernel<T>, rows * stripes, kNmsThreads, 0, stream, s.groups, chunk, stripes,
           p.threshold);
    launch("nms (scan)", &nms_scan_kernel<T>, rows, kNmsThreads, 0, stream, s.groups, chunk, p.max_output,
           s.decisions.removed, s.decisions.keep);
  }
  launch("nms (collect)", &nms_collect_kernel<T>, p.num_images, kCollectThreads, 0, stream, p, s.order.values,
         s.decisions.keep, indices, count);
}

}  // namespace fastrcnn
