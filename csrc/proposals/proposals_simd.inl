// The hot loops of the top-k, compiled once per SIMD level: both are bound by reading the logits.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

void group_maxima(const float* values, int64_t n, int64_t group_size, float* maxima) {
  const int64_t chunk = kGroupsPerChunk * group_size;
  for (int64_t first = 0; first < n; first += chunk, maxima += kGroupsPerChunk) {
    const int64_t end = first + chunk < n ? first + chunk : n;
    float best[kGroupsPerChunk];
    for (int64_t g = 0; g < kGroupsPerChunk; ++g) best[g] = -INFINITY;
    int64_t i = first;
    for (; i + kGroupsPerChunk <= end; i += kGroupsPerChunk) {
      for (int64_t g = 0; g < kGroupsPerChunk; ++g) best[g] = maximum(values[i + g], best[g]);
    }
    for (int64_t g = 0; i + g < end; ++g) best[g] = maximum(values[i + g], best[g]);
    for (int64_t g = 0; g < kGroupsPerChunk; ++g) maxima[g] = best[g];
  }
}

// Bit j of the result: value j of 16 is not less than the bound.
FASTRCNN_INLINE uint32_t not_below(const float* values, float bound) {
#if FASTRCNN_VECTOR_BITS == 512
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_set1_ps(bound), _CMP_NLT_UQ);
#elif FASTRCNN_VECTOR_BITS == 256
  const __m256 bounds = _mm256_set1_ps(bound);
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values), bounds, _CMP_NLT_UQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values + 8), bounds, _CMP_NLT_UQ));
  return static_cast<uint32_t>(low | high << 8);
#else
  uint32_t bits = 0;
  for (int j = 0; j < 16; ++j) bits |= static_cast<uint32_t>(!(values[j] < bound)) << j;
  return bits;
#endif
}

int64_t find_not_below(const float* values, int64_t n, float bound, int32_t* places) {
  int64_t found = 0, i = 0;
  for (; i + 16 <= n; i += 16) {
    for (uint32_t bits = not_below(values + i, bound); bits; bits &= bits - 1) {
      places[found++] = static_cast<int32_t>(i) + __builtin_ctz(bits);
    }
  }
  for (; i < n; ++i) {
    if (!(values[i] < bound)) places[found++] = static_cast<int32_t>(i);
  }
  return found;
}

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
