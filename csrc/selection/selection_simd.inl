// The softmax of one RoI, compiled once per SIMD level. Sums are taken in 16 lanes on every level, hence the same bits.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

// The largest number; NaN are left out.
FASTRCNN_INLINE float row_maximum(const float* row, int64_t padded) {
  float lanes[kSoftmaxLanes];
  for (int64_t lane = 0; lane < kSoftmaxLanes; ++lane) lanes[lane] = row[lane];
  for (int64_t i = kSoftmaxLanes; i < padded; i += kSoftmaxLanes) {
    for (int64_t lane = 0; lane < kSoftmaxLanes; ++lane) lanes[lane] = maximum(row[i + lane], lanes[lane]);
  }
  float largest = -INFINITY;
  for (int64_t lane = 0; lane < kSoftmaxLanes; ++lane) largest = maximum(lanes[lane], largest);
  return largest;
}

bool softmax_above(float* row, int64_t classes, float log_threshold) {
  const int64_t padded = (classes + kSoftmaxLanes) / kSoftmaxLanes * kSoftmaxLanes;
  const float background = row[classes];
  row[classes] = -INFINITY;
  const float best_class = row_maximum(row, padded);
  row[classes] = background;
  const float largest = maximum(background, best_class);
  // The sum below is at least 1, the largest one's own part, so that exp(logit - largest) bounds the score. Rounding is
  // far smaller than the margin.
  if (best_class - largest < log_threshold - 1e-3f) return false;
  for (int64_t i = 0; i < padded; ++i) row[i] = exponential(row[i] - largest);
  FloatVec sums = {};
  for (int64_t i = 0; i < padded; i += kSoftmaxLanes) sums += load(row + i);
  float sum = 0;
  for (int64_t lane = 0; lane < kSoftmaxLanes; ++lane) sum += sums[lane];
  for (int64_t i = 0; i < padded; ++i) row[i] /= sum;
  return true;
}

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
