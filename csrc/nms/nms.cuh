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
#include "nms_order.cuh"

namespace fastrcnn {

using Word = unsigned long long;
constexpr int kWordBits = 64;  // also the side of a tile of candidates
constexpr int kNmsThreads = 256;
constexpr int kCollectThreads = 1024;
constexpr size_t kMaskBytes = size_t(128) << 20;

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

// Work: `stripes` blocks of 64 threads share a row of tiles, taking its tiles in turn; a thread owns one candidate of
// the row and reads those of the other tile from shared memory. Blocks stop where the segment ends.
template <typename T>
__global__ void __launch_bounds__(kWordBits)
    nms_mask_kernel(Groups<T> groups, MaskChunk chunk, int stripes, T threshold) {
  __shared__ Box<T> boxes[kWordBits];
  __shared__ T areas[kWordBits];
  __shared__ int32_t images[kWordBits];
  __shared__ int64_t classes[kWordBits];
  const int64_t tile = chunk.first_tile + blockIdx.x / stripes;
  const int64_t row = tile * kWordBits + threadIdx.x;
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
    if (!exists || image < 0) continue;
    Word suppressed = 0;
    for (int j = w == 0 ? threadIdx.x + 1 : 0; j < columns; ++j) {
      if (images[j] == image && classes[j] == class_id && suppresses(box, box_area, boxes[j], areas[j], threshold)) {
        suppressed |= bit(j);
      }
    }
    chunk.word(row, w) = suppressed;
  }
}

// --- 4: scan ---------------------------------------------------------------------------------------------------------

// Work: a block owns the segments that begin in one tile. Those that also end there are resolved together, for they do
// not suppress each other; at most one, the long one, goes on, and the block follows it from tile to tile:
//   - warp 0 takes the sequential decision within the tile: 64 steps on bits, the words of the tile in shared memory;
//   - meanwhile every thread has loaded the words that say what 8 of the rows would suppress in one of the 32 tiles
//     ahead (a warp: 8 rows of 32 tiles), and then removes what the kept ones among them suppress.
// Words of `removed` that lie ahead belong to this block alone: it owns the segment that reaches them.
// It stops when the long segment has kept max_output: what comes later in it could not be among the first K.
template <typename T>
__global__ void __launch_bounds__(kNmsThreads)
    nms_scan_kernel(Groups<T> groups, MaskChunk chunk, int64_t max_output, Word* removed, bool* keep) {
  constexpr int rows_per_warp = kWordBits / (kNmsThreads / kWarpSize);
  __shared__ Word own_words[kWordBits];
  __shared__ Word kept_words;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int first_row = warp * rows_per_warp;
  const int64_t first_tile = chunk.first_tile + blockIdx.x, first = first_tile * kWordBits;
  const int64_t last = minimum(first + kWordBits, groups.n) - 1;

  // Whatever the first tile of a chunk holds is this block's: a segment that the chunk before it cut is carried on.
  const int64_t mine = first + threadIdx.x;
  const bool exists = threadIdx.x < kWordBits && mine <= last && groups.images[mine] >= 0;
  const bool begins = (threadIdx.x == 0 && blockIdx.x == 0) || (exists && !groups.same_segment(mine - 1, mine));
  const Word starts = block_bits64(exists && begins);
  if (starts == 0) return;
  const int first_start = __ffsll(static_cast<long long>(starts)) - 1;

  int64_t last_tile = first_tile;  // where the long segment ends
  for (int more = groups.images[last] >= 0 ? kNmsThreads : 0; more == kNmsThreads; last_tile += more) {
    const int64_t ahead = (last_tile + 1 + threadIdx.x) * kWordBits;
    more = __syncthreads_count(ahead < groups.n && groups.same_segment(last, ahead));
  }
  int64_t num_kept = 0;  // of the long segment

  for (int64_t tile = first_tile; tile <= last_tile && tile < chunk.last_tile; ++tile) {
    const int64_t position = tile * kWordBits + threadIdx.x;
    const bool in_tile = threadIdx.x < kWordBits && position < groups.n && groups.images[position] >= 0;
    const bool goes_on = in_tile && groups.same_segment(last, position);
    const bool member = tile == first_tile ? in_tile && static_cast<int>(threadIdx.x) >= first_start : goes_on;
    if (threadIdx.x < kWordBits) own_words[threadIdx.x] = member ? chunk.word(position, 0) : 0;
    const Word members = block_bits64(member), long_members = block_bits64(goes_on);  // with barriers

    Word ahead[rows_per_warp];
    const bool has_ahead = tile + 1 + lane <= last_tile;
#pragma unroll
    for (int i = 0; i < rows_per_warp; ++i) {
      const bool needed = has_ahead && (long_members & bit(first_row + i));
      ahead[i] = needed ? chunk.word(tile * kWordBits + first_row + i, 1 + lane) : 0;
    }
    if (warp == 0) {
      Word gone = ~members | atomicOr(&removed[tile], Word(0));
#pragma unroll 8
      for (int i = 0; i < kWordBits; ++i) {
        if (!(gone & bit(i))) gone |= own_words[i];
      }
      if (lane == 0) kept_words = ~gone;
    }
    __syncthreads();
    const Word kept = kept_words, long_kept = kept & long_members;
    if (threadIdx.x < kWordBits && (kept & bit(threadIdx.x))) {
      keep[groups.ranks != nullptr ? groups.ranks[position] : position] = true;
    }
    num_kept += __popcll(long_kept);
    if (num_kept >= max_output) break;
    Word gone_ahead = 0;
#pragma unroll
    for (int i = 0; i < rows_per_warp; ++i) {
      if (long_kept & bit(first_row + i)) gone_ahead |= ahead[i];
    }
    if (gone_ahead != 0) atomicOr(&removed[tile + 1 + lane], gone_ahead);
    for (int64_t w = 1 + kWarpSize + lane; tile + w <= last_tile; w += kWarpSize) {
      gone_ahead = 0;
#pragma unroll
      for (int i = 0; i < rows_per_warp; ++i) {
        if (long_kept & bit(first_row + i)) gone_ahead |= chunk.word(tile * kWordBits + first_row + i, w);
      }
      if (gone_ahead != 0) atomicOr(&removed[tile + w], gone_ahead);
    }
    __syncthreads();  // all of it is removed before the next tile is resolved
  }
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
  Word* removed;  // one per tile
  bool* keep;     // by rank; lies behind `removed`
  int64_t mask_rows, mask_words;
  Word* mask;
  void* sort;
  size_t sort_bytes;
  size_t bytes;  // of all

  // memory: null to learn `bytes`.
  NmsScratch(const NmsParams<T>& p, void* memory) {
    const int64_t n = p.num_images * p.num_candidates, tiles = blocks_for(n, kWordBits);
    const auto base = reinterpret_cast<uintptr_t>(memory);
    bytes = 0;
    const auto take = [&]<typename U>(U*& pointer, int64_t count) {
      pointer = reinterpret_cast<U*>(base + bytes);
      bytes += (static_cast<size_t>(count) * sizeof(U) + 255) / 256 * 256;
    };
    const int64_t class_count = p.class_ids != nullptr ? n : 0;
    take(order.keys, n);
    take(order.other_keys, n);
    take(order.values, n);
    take(order.other_values, n);
    take(class_order[0], class_count);
    take(class_order[1], class_count);
    groups.n = n;
    take(groups.boxes, n);
    take(groups.images, n);
    take(groups.classes, class_count);
    if (class_count == 0) groups.classes = nullptr;
    groups.ranks = nullptr;
    groups.class_bits = p.class_bits;
    take(removed, tiles);
    take(keep, n);
    mask_words = blocks_for(p.max_segment, kWordBits) + 1;  // a segment can begin anywhere in a tile
    const auto tile_bytes = static_cast<int64_t>(kWordBits * mask_words * sizeof(Word));
    const int64_t tiles_at_once = maximum<int64_t>(1, static_cast<int64_t>(kMaskBytes) / tile_bytes);
    mask_rows = minimum(tiles, tiles_at_once) * kWordBits;
    take(mask, mask_rows * mask_words);
    sort_bytes = sort_scratch_bytes(n);
    char* sort_memory;
    take(sort_memory, static_cast<int64_t>(sort_bytes));
    sort = sort_memory;
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
  for_each("nms (groups)", n, WriteGroups<T>{p, s.order.values, s.groups}, stream);

  const auto zeros = reinterpret_cast<char*>(s.keep + n) - reinterpret_cast<char*>(s.removed);
  zero_async("nms", s.removed, static_cast<size_t>(zeros), stream);
  const int64_t chunk_tiles = s.mask_rows / kWordBits;
  const int stripes = static_cast<int>(minimum<int64_t>(s.mask_words, 8));
  for (int64_t first = 0; first < tiles; first += chunk_tiles) {
    const MaskChunk chunk{first, minimum(first + chunk_tiles, tiles), s.mask_words, s.mask};
    const int64_t rows = chunk.last_tile - chunk.first_tile;
    launch("nms (mask)", &nms_mask_kernel<T>, rows * stripes, kWordBits, 0, stream, s.groups, chunk, stripes,
           p.threshold);
    launch("nms (scan)", &nms_scan_kernel<T>, rows, kNmsThreads, 0, stream, s.groups, chunk, p.max_output, s.removed,
           s.keep);
  }
  launch("nms (collect)", &nms_collect_kernel<T>, p.num_images, kCollectThreads, 0, stream, p, s.order.values, s.keep,
         indices, count);
}

}  // namespace fastrcnn
