// The softmax of one RoI, compiled once per SIMD level. Sums are taken in 16 lanes on every level, hence the same bits.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

// exp of a number that is 0 or less, within 1.5 units in the last place: x = m ln 2 + r with |r| <= ln(2) / 2, the
// Taylor series of exp(r), times 2^m. NaN stays NaN.
FASTRCNN_INLINE float exp_negative(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // the sum is ln 2
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = x < -104.0f ? -104.0f : x;         // exp is 0 there
  const float shifted = x * kLog2E + kRound;
  const float m = shifted - kRound;
  const float r = (x - m * kLn2High) - m * kLn2Low;
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r * r + r + 1.0f;
  const int32_t exponent = __builtin_bit_cast(int32_t, shifted) - 0x4B400000;  // m as an integer
  const int32_t half = exponent >> 1;  // 2^m in two factors, since it may be less than all normal numbers
  const float scale = __builtin_bit_cast(float, (half + 127) << 23);
  const float other_scale = __builtin_bit_cast(float, (exponent - half + 127) << 23);
  return series * scale * other_scale;
}

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
  for (int64_t i = 0; i < padded; ++i) row[i] = exp_negative(row[i] - largest);
  FloatVec sums = {};
  for (int64_t i = 0; i < padded; i += kSoftmaxLanes) sums += load(row + i);
  float sum = 0;
  for (int64_t lane = 0; lane < kSoftmaxLanes; ++lane) sum += sums[lane];
  for (int64_t i = 0; i < padded; ++i) row[i] /= sum;
  return true;
}

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
