// The exact top-k of the logits of every image and level on CUDA, read where they lie, in any layout.
//
// A level has hundreds of thousands of logits, of which about a thousand are wanted, by far too many for one block. So
// a lower bound of the k-th largest is found first, as on the CPU (top_k.h): the logits are divided into some 4 k
// groups; at least k logits reach the k-th largest of the groups' maxima, and few others do.
// 1. Groups: a thread owns a group, whose members lie as far apart as there are groups, so that the threads of a warp
//    read neighbours and neighbouring logits are in different groups. A level too small for it has no groups.
// 2. Bounds: a block owns a level of an image, and finds the k-th largest maximum.
// 3. Filter: a block owns a chunk of 2048 logits, and moves those not below the bound to the chunk's beginning.
// 4. Select: a block owns a level of an image, joins its chunks, finds the k-th largest of what is left, and gives each
//    of the k largest its place: in the order of anchors, those equal to the k-th largest at the end. Of these the
//    first ones are taken.
// Logits are compared as integer keys (math/score.h); nothing depends on which thread comes first, so neither does the
// result. In the worst case, all logits equal, nothing is filtered, and step 4 goes through all of them.
#pragma once

#include "../common/block.cuh"
#include "../common/float_array.cuh"
#include "../common/scratch.h"
#include "../math/score.h"
#include "proposals_params.h"

namespace fastrcnn {

constexpr int kMaxProposalLevels = 8;
constexpr int kFilterThreads = 256;
constexpr int kLogitsPerThread = 8;
constexpr int kLogitsPerWarp = kLogitsPerThread * kWarpSize;
constexpr int kLogitsPerChunk = kLogitsPerThread * kFilterThreads;
constexpr int kSelectThreads = 1024;
constexpr int kBoundBits = 18;  // of a bound that are decided: sign, exponent and 9 bits; the others are left at 0

struct TopKLevel {
  ProposalLevel<DeviceFloatArray> maps;
  int64_t size;        // logits of an image
  int64_t k;           // how many are chosen: from 0 to size
  int64_t num_groups;  // 0: all logits pass the filter
  // Where the level begins in the arrays of an image.
  int64_t first_group, first_chunk, first_logit, first_chosen;

  // The keys of the logits first, first + stride, ...; INT32_MIN, which no logit has, beyond the last one. All are read
  // before the first is looked at, so that the thread waits for memory once.
  template <typename Feature, int count>
  __device__ __forceinline__ void read_keys(int64_t image, int64_t first, int64_t stride,
                                            int32_t (&keys)[count]) const {
    float read[count];
#pragma unroll
    for (int j = 0; j < count; ++j) {
      read[j] = maps.objectness.at<Feature>(maps.logit_place(image, minimum(first + j * stride, size - 1)));
    }
#pragma unroll
    for (int j = 0; j < count; ++j) keys[j] = first + j * stride < size ? top_k_key(read[j]) : INT32_MIN;
  }
};

struct TopKParams {
  TopKLevel levels[kMaxProposalLevels];
  int num_levels;
  int64_t num_images;
  int64_t num_groups, num_chunks, num_logits, num_chosen;  // of an image, all levels together
  // Scratch memory.
  int32_t* maxima;                      // [N, num_groups]: keys
  int32_t* bounds;                      // [N, L]: keys
  int32_t* chunk_counts;                // [N, num_chunks]
  int32_t *chunk_keys, *chunk_anchors;  // [N, num_logits]: what is left of each chunk at its beginning
  int32_t *keys, *anchors;              // [N, num_logits]: what is left of each level at its beginning

  // The level that has the given item, where `first` is the member that says where each level's items begin.
  __device__ __forceinline__ int level_of(int64_t TopKLevel::* first, int64_t item) const {
    int level = num_levels - 1;
    while (level > 0 && item < levels[level].*first) --level;
    return level;
  }

  void take_scratch(ScratchMemory& scratch) {
    scratch.take(maxima, num_images * num_groups);
    scratch.take(bounds, num_images * num_levels);
    scratch.take(chunk_counts, num_images * num_chunks);
    for (int32_t** array : {&chunk_keys, &chunk_anchors, &keys, &anchors}) {
      scratch.take(*array, num_images * num_logits);
    }
  }
};

// Sizes and first places; levels must be appended in order.
inline void append_level(TopKParams& p, const ProposalLevel<DeviceFloatArray>& maps, int64_t pre_nms) {
  TopKLevel level{};
  level.maps = maps;
  level.size = maps.size();
  level.k = minimum(pre_nms, level.size);
  const int64_t group_size = level.k > 0 ? level.size / (4 * level.k) : 0;
  level.num_groups = group_size > 1 ? blocks_for(level.size, group_size) : 0;
  level.first_group = p.num_groups;
  level.first_chunk = p.num_chunks;
  level.first_logit = p.num_logits;
  level.first_chosen = p.num_chosen;
  p.num_groups += level.num_groups;
  p.num_chunks += blocks_for(level.size, kLogitsPerChunk);
  p.num_logits += level.size;
  p.num_chosen += level.k;
  p.levels[p.num_levels++] = level;
}

// --- the k-th largest ------------------------------------------------------------------------------------------------

// Of n keys, k from 1 to n, in the `bits` highest bits; the others are the lowest there are. Found by a whole block.
// The bits are decided from the highest on: one is set if as many as k keys are not below what that makes.
// The first keys of each thread stay in registers.
template <int threads>
__device__ __forceinline__ int32_t block_kth_largest(const int32_t* keys, int64_t n, int64_t k, int bits) {
  alignas(16) __shared__ int counts[2][threads / kWarpSize];  // taken in turn, so that one barrier per bit is enough
  constexpr uint32_t sign = uint32_t(1) << 31;                // flipped: the unsigned order is the order of keys
  constexpr int own_keys = 4;
  int32_t own[own_keys];
#pragma unroll
  for (int j = 0; j < own_keys; ++j) {
    const int64_t i = j * threads + threadIdx.x;
    own[j] = i < n ? keys[i] : INT32_MIN;  // below every pivot
  }
  uint32_t decided = 0;
  for (int bit = 31; bit > 31 - bits; --bit) {
    const uint32_t trial = decided | uint32_t(1) << bit;
    const auto pivot = static_cast<int32_t>(trial ^ sign);
    int count = 0;
#pragma unroll
    for (int j = 0; j < own_keys; ++j) {
      if (j * threads < n) count += __popc(__ballot_sync(kFullWarp, own[j] >= pivot));
    }
#pragma unroll 4
    for (int64_t first = own_keys * threads; first < n; first += threads) {
      const int64_t i = first + threadIdx.x;
      count += __popc(__ballot_sync(kFullWarp, i < n && keys[i] >= pivot));
    }
    if (threadIdx.x % kWarpSize == 0) counts[bit & 1][threadIdx.x / kWarpSize] = count;
    __syncthreads();
    int64_t total = 0;
#pragma unroll
    for (int w = 0; w < threads / kWarpSize; ++w) total += counts[bit & 1][w];
    if (total >= k) decided = trial;
    if (total == k) break;  // just the k largest are not below
  }
  return static_cast<int32_t>(decided ^ sign);
}

// --- 1, 2: bounds ----------------------------------------------------------------------------------------------------

struct WriteGroupMaximum {
  TopKParams p;

  __device__ void operator()(int64_t item) const {
    const int64_t image = item / p.num_groups, in_image = item % p.num_groups;
    const TopKLevel& level = p.levels[p.level_of(&TopKLevel::first_group, in_image)];
    with_float_type(level.maps.objectness.type, [&]<typename Feature>() {
      int32_t best = INT32_MIN;
      const int64_t step = kLogitsPerThread * level.num_groups;
      for (int64_t i = in_image - level.first_group; i < level.size; i += step) {
        int32_t keys[kLogitsPerThread];
        level.read_keys<Feature>(image, i, level.num_groups, keys);
        for (const int32_t key : keys) best = maximum(best, key);
      }
      p.maxima[item] = best;
    });
  }
};

template <int threads>
__global__ void __launch_bounds__(threads) top_k_bounds_kernel(TopKParams p) {
  const int64_t image = blockIdx.x / p.num_levels;
  const TopKLevel& level = p.levels[blockIdx.x % p.num_levels];
  int32_t bound = INT32_MIN;
  if (level.num_groups > 0) {
    const int32_t* maxima = p.maxima + image * p.num_groups + level.first_group;
    bound = block_kth_largest<threads>(maxima, level.num_groups, level.k, kBoundBits);
  }
  if (threadIdx.x == 0) p.bounds[blockIdx.x] = bound;
}

// --- 3: filter -------------------------------------------------------------------------------------------------------

// A warp owns 256 consecutive logits of the chunk, which it has read before it counts.
template <int threads>
__global__ void __launch_bounds__(threads) top_k_filter_kernel(TopKParams p) {
  __shared__ int warp_counts[threads / kWarpSize];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t image = blockIdx.x / p.num_chunks, in_image = blockIdx.x % p.num_chunks;
  const int level_index = p.level_of(&TopKLevel::first_chunk, in_image);
  const TopKLevel& level = p.levels[level_index];
  const int64_t chunk_start = (in_image - level.first_chunk) * kLogitsPerChunk;
  const int64_t first = chunk_start + warp * kLogitsPerWarp + lane;
  const int32_t bound = p.bounds[image * p.num_levels + level_index];

  int32_t keys[kLogitsPerThread];
  with_float_type(level.maps.objectness.type,
                  [&]<typename Feature>() { level.read_keys<Feature>(image, first, kWarpSize, keys); });
  unsigned passes[kLogitsPerThread];
  int count = 0;
#pragma unroll
  for (int j = 0; j < kLogitsPerThread; ++j) {
    passes[j] = __ballot_sync(kFullWarp, first + j * kWarpSize < level.size && keys[j] >= bound);
    count += __popc(passes[j]);
  }
  if (lane == 0) warp_counts[warp] = count;
  __syncthreads();

  int before = 0, total = 0;
  for (int w = 0; w < threads / kWarpSize; ++w) {
    if (w < warp) before += warp_counts[w];
    total += warp_counts[w];
  }
  int64_t slot = image * p.num_logits + level.first_logit + chunk_start + before;
#pragma unroll
  for (int j = 0; j < kLogitsPerThread; ++j) {
    if (passes[j] >> lane & 1) {
      const int64_t own = slot + __popc(passes[j] & ((1u << lane) - 1));
      p.chunk_keys[own] = keys[j];
      p.chunk_anchors[own] = static_cast<int32_t>(first + j * kWarpSize);
    }
    slot += __popc(passes[j]);
  }
  if (threadIdx.x == 0) p.chunk_counts[blockIdx.x] = total;
}

// --- 4: select -------------------------------------------------------------------------------------------------------

// Joins what the filter left of a level of an image; returns how many there are.
template <int threads>
__device__ __forceinline__ int64_t join_chunks(const TopKParams& p, const TopKLevel& level, int64_t image) {
  __shared__ int starts[threads];
  const int64_t num_chunks = blocks_for(level.size, kLogitsPerChunk);
  const int32_t* chunk_counts = p.chunk_counts + image * p.num_chunks + level.first_chunk;
  const int64_t base = image * p.num_logits + level.first_logit;
  int64_t joined = 0;
  for (int64_t first = 0; first < num_chunks; first += threads) {
    const int64_t own_chunk = first + threadIdx.x;
    const BlockPrefix prefix = block_prefix<threads>(own_chunk < num_chunks ? chunk_counts[own_chunk] : 0);
    starts[threadIdx.x] = prefix.before;
    __syncthreads();
    for (int i = threadIdx.x; i < prefix.total; i += threads) {
      int chunk = 0;  // the last one that starts at i or before
      for (int step = threads / 2; step > 0; step /= 2) {
        if (starts[chunk + step] <= i) chunk += step;
      }
      const int64_t source = base + (first + chunk) * kLogitsPerChunk + i - starts[chunk];
      p.keys[base + joined + i] = p.chunk_keys[source];
      p.anchors[base + joined + i] = p.chunk_anchors[source];
    }
    joined += prefix.total;
  }
  __syncthreads();
  return joined;
}

// Calls choose(image, level, place, logit, anchor) for each chosen logit; place: from 0 to num_chosen of the image.
template <int threads, typename Choose>
__global__ void __launch_bounds__(threads) top_k_select_kernel(TopKParams p, Choose choose) {
  const int64_t image = blockIdx.x / p.num_levels;
  const int level_index = static_cast<int>(blockIdx.x % p.num_levels);
  const TopKLevel& level = p.levels[level_index];
  if (level.k == 0) return;
  const int64_t n = join_chunks<threads>(p, level, image);
  const int32_t* keys = p.keys + image * p.num_logits + level.first_logit;
  const int32_t* anchors = p.anchors + image * p.num_logits + level.first_logit;
  // No key is as low as INT32_MIN.
  const int32_t kth = n > level.k ? block_kth_largest<threads>(keys, n, level.k, 32) : INT32_MIN;
  int64_t num_above = 0;
  for (int64_t first = 0; first < n; first += threads) {
    const int64_t i = first + threadIdx.x;
    num_above += __syncthreads_count(i < n && keys[i] > kth);
  }
  int64_t above_before = 0, equal_before = 0;
  for (int64_t first = 0; first < n; first += threads) {
    const int64_t i = first + threadIdx.x;
    const int32_t key = i < n ? keys[i] : INT32_MIN;
    const bool is_above = i < n && key > kth, is_equal = i < n && key == kth;
    const BlockRank above = block_rank<threads>(is_above), equal = block_rank<threads>(is_equal);
    const int64_t place = is_above ? above_before + above.rank : num_above + equal_before + equal.rank;
    if ((is_above || is_equal) && place < level.k) {
      choose(image, level_index, level.first_chosen + place, logit_of(key), anchors[i]);
    }
    above_before += above.total;
    equal_before += equal.total;
  }
}

// At least one image, and num_chosen > 0. All pointers are to device memory. Choose: a struct with a const operator()
// on the device.
template <typename Choose>
void launch_top_k(const TopKParams& p, const Choose& choose, cudaStream_t stream) {
  for_each("generate_proposals (groups)", p.num_images * p.num_groups, WriteGroupMaximum{p}, stream);
  const int64_t levels = p.num_images * p.num_levels;
  launch("generate_proposals (bounds)", &top_k_bounds_kernel<kSelectThreads>, levels, kSelectThreads, 0, stream, p);
  launch("generate_proposals (filter)", &top_k_filter_kernel<kFilterThreads>, p.num_images * p.num_chunks,
         kFilterThreads, 0, stream, p);
  launch("generate_proposals (select)", &top_k_select_kernel<kSelectThreads, Choose>, levels, kSelectThreads, 0, stream,
         p, choose);
}

}  // namespace fastrcnn
