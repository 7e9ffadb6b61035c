// 16-bit numbers as float32, compiled once per SIMD level.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

template <typename Narrow>
FASTRCNN_INLINE void widen_typed(const Narrow* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + kLanes<float> <= n; i += kLanes<float>) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

void widen(const torch::headeronly::BFloat16* from, int64_t n, float* to) { widen_typed(from, n, to); }
void widen(const torch::headeronly::Half* from, int64_t n, float* to) { widen_typed(from, n, to); }

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
