// Vectors of 64 bytes: 16 float32 or 8 float64. The compiler splits them where the level has narrower registers.
// No fused multiply-adds except where multiply_add says so, so that every level gives the same bits.
//
// FASTRCNN_VECTOR_BITS tells the levels apart where intrinsics are needed: a target pragma does not make g++ define
// __AVX2__ and the like.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

using FloatVec = float __attribute__((vector_size(64)));
using DoubleVec = double __attribute__((vector_size(64)));

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = FloatVec;
};
template <>
struct VecOf<double> {
  using type = DoubleVec;
};
template <typename T>
using Vec = typename VecOf<T>::type;

template <typename T>
inline constexpr int kLanes = 64 / sizeof(T);

#define FASTRCNN_INLINE static inline __attribute__((always_inline))

template <typename V, typename T>
FASTRCNN_INLINE V load_unaligned(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

// One register of the level, for loops that keep their sums in as many registers as there are.
using FloatRegister = float __attribute__((vector_size(FASTRCNN_VECTOR_BITS / 8)));
inline constexpr int kRegisterLanes = FASTRCNN_VECTOR_BITS / 32;

FASTRCNN_INLINE FloatRegister broadcast(float value) { return value - FloatRegister{}; }

FASTRCNN_INLINE void store_unaligned(float* to, FloatRegister value) { __builtin_memcpy(to, &value, sizeof value); }

// For results so large that the caches would not keep them: memory need not be read to be overwritten. `to` is aligned
// to 64 bytes. The thread's last such store is followed by finish_stores_past_caches().
FASTRCNN_INLINE void store_past_caches(float* to, FloatRegister value) {
#if FASTRCNN_VECTOR_BITS == 512
  _mm512_stream_ps(to, (__m512)value);
#elif FASTRCNN_VECTOR_BITS == 256
  _mm256_stream_ps(to, (__m256)value);
#else
  store_unaligned(to, value);
#endif
}

FASTRCNN_INLINE void finish_stores_past_caches() {
#if FASTRCNN_VECTOR_BITS >= 256
  _mm_sfence();
#endif
}

// a * b + c, rounded once. Below AVX2, x86 has no instruction for it: there it is a call of the C library's fmaf per
// lane, with the same result, tens of times slower.
FASTRCNN_INLINE FloatRegister multiply_add(FloatRegister a, FloatRegister b, FloatRegister c) {
#if FASTRCNN_VECTOR_BITS == 512
  return (FloatRegister)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FASTRCNN_VECTOR_BITS == 256
  return (FloatRegister)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  for (int i = 0; i < kRegisterLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}

// kLanes<T> features as T.
FASTRCNN_INLINE FloatVec load(const float* from) { return load_unaligned<FloatVec>(from); }
FASTRCNN_INLINE DoubleVec load(const double* from) { return load_unaligned<DoubleVec>(from); }

FASTRCNN_INLINE FloatVec load(const torch::headeronly::BFloat16* from) {
  using Bits16 = uint16_t __attribute__((vector_size(32)));
  using Bits32 = uint32_t __attribute__((vector_size(64)));
  const Bits32 wide = __builtin_convertvector(load_unaligned<Bits16>(from), Bits32) << 16;  // the upper half of a float
  FloatVec value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}

FASTRCNN_INLINE FloatVec load(const torch::headeronly::Half* from) {
  FloatVec value;
#if FASTRCNN_VECTOR_BITS == 512
  const __m512 wide = _mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  __builtin_memcpy(&value, &wide, sizeof value);
#elif FASTRCNN_VECTOR_BITS == 256
  const __m256 low = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  const __m256 high = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + 1));
  __builtin_memcpy(&value, &low, sizeof low);
  __builtin_memcpy(reinterpret_cast<char*>(&value) + sizeof low, &high, sizeof high);
#else
  for (int i = 0; i < 16; ++i) value[i] = static_cast<float>(from[i]);
#endif
  return value;
}

FASTRCNN_INLINE void store(float* to, FloatVec value) { __builtin_memcpy(to, &value, sizeof value); }
FASTRCNN_INLINE void store(double* to, DoubleVec value) { __builtin_memcpy(to, &value, sizeof value); }

// Rounded to the nearest, ties to even, as static_cast does; NaN becomes the one NaN of static_cast.
FASTRCNN_INLINE void store(torch::headeronly::BFloat16* to, FloatVec value) {
  using Bits16 = uint16_t __attribute__((vector_size(32)));
  using Bits32 = uint32_t __attribute__((vector_size(64)));
  Bits32 bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const Bits32 rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const Bits32 not_nan = (Bits32)(value == value);
  const Bits16 narrow = __builtin_convertvector((rounded & not_nan) | (0x7FC0 & ~not_nan), Bits16);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}

FASTRCNN_INLINE void store(torch::headeronly::Half* to, FloatVec value) {
#if FASTRCNN_VECTOR_BITS >= 256
  using Bits32 = uint32_t __attribute__((vector_size(64)));
  Bits32 bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const Bits32 is_nan = (Bits32)(value != value);
  bits = (bits & ~(is_nan & 0x7FFFFFFF)) | (is_nan & 0x7FC00000);
  __m256 halves[2];
  __builtin_memcpy(halves, &bits, sizeof halves);
  for (int i = 0; i < 2; ++i) {
    const __m128i narrow = _mm256_cvtps_ph(halves[i], _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(to + 8 * i, &narrow, sizeof narrow);
  }
#else
  for (int i = 0; i < 16; ++i) to[i] = static_cast<torch::headeronly::Half>(value[i]);
#endif
}

// The largest lane; any order gives the same. Not for NaN.
FASTRCNN_INLINE float largest_lane(FloatVec v) {
  FloatVec w = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v = w > v ? w : v;
  w = __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v = w > v ? w : v;
  w = __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  v = w > v ? w : v;
  return v[0] > v[1] ? v[0] : v[1];
}

FASTRCNN_INLINE double largest_lane(DoubleVec v) {
  DoubleVec w = __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  v = w > v ? w : v;
  w = __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
  v = w > v ? w : v;
  return v[0] > v[1] ? v[0] : v[1];
}

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
