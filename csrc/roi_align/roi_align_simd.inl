// The hot loops of RoIAlign, compiled once per SIMD level. A block of channels stays in registers while all terms of
// its sum are added, in the order of the terms whatever the block size, so the result does not depend on the level.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

// Adds all terms of one bin to channels [c, c + Blocks * lanes).
template <int Blocks, typename Feature, typename T>
FASTRCNN_INLINE void pool_block(const AxisSums<T>& y, const AxisSums<T>& x, int ph, int pw, const Feature* map,
                                int64_t row, int64_t channels, int64_t c, Feature* bin) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[Blocks] = {};
  for (int i = y.begin[ph]; i < y.begin[ph + 1]; ++i) {
    const Feature* map_row = map + y.terms[i].index * row + c;
    for (int j = x.begin[pw]; j < x.begin[pw + 1]; ++j) {
      const T weight = y.terms[i].weight * x.terms[j].weight;
      const Feature* cell = map_row + x.terms[j].index * channels;
      for (int b = 0; b < Blocks; ++b) sum[b] += load(cell + b * lanes) * weight;
    }
  }
  for (int b = 0; b < Blocks; ++b) store(bin + c + b * lanes, sum[b]);
}

// The same for one channel.
template <typename Feature, typename T>
FASTRCNN_INLINE void pool_channel(const AxisSums<T>& y, const AxisSums<T>& x, int ph, int pw, const Feature* map,
                                  int64_t row, int64_t channels, int64_t c, Feature* bin) {
  T sum = T(0);
  for (int i = y.begin[ph]; i < y.begin[ph + 1]; ++i) {
    for (int j = x.begin[pw]; j < x.begin[pw + 1]; ++j) {
      const T weight = y.terms[i].weight * x.terms[j].weight;
      sum += static_cast<T>(map[y.terms[i].index * row + x.terms[j].index * channels + c]) * weight;
    }
  }
  bin[c] = static_cast<Feature>(sum);
}

template <typename Feature, typename T>
FASTRCNN_INLINE void pool_roi_typed(const AxisSums<T>& y, const AxisSums<T>& x, const Feature* map, int64_t row,
                                    int64_t channels, Feature* out) {
  constexpr int lanes = kLanes<T>;
  for (int ph = 0; ph < y.count; ++ph) {
    for (int pw = 0; pw < x.count; ++pw, out += channels) {
      int64_t c = 0;
      for (; c + 8 * lanes <= channels; c += 8 * lanes) pool_block<8>(y, x, ph, pw, map, row, channels, c, out);
      for (; c + 4 * lanes <= channels; c += 4 * lanes) pool_block<4>(y, x, ph, pw, map, row, channels, c, out);
      for (; c + lanes <= channels; c += lanes) pool_block<1>(y, x, ph, pw, map, row, channels, c, out);
      for (; c < channels; ++c) pool_channel(y, x, ph, pw, map, row, channels, c, out);
    }
  }
}

// Adds the shares of all bins to channels [c, c + Blocks * lanes) of one cell.
template <int Blocks, typename Feature, typename T>
FASTRCNN_INLINE void spread_block(const AxisSums<T>& y, const AxisSums<T>& x, int i, int j, const Feature* grad,
                                  int pooled_width, int64_t bin, int64_t c, T* cell) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[Blocks];
  for (int b = 0; b < Blocks; ++b) sum[b] = load(cell + c + b * lanes);
  for (int p = y.begin[i]; p < y.begin[i + 1]; ++p) {
    for (int q = x.begin[j]; q < x.begin[j + 1]; ++q) {
      const T weight = y.terms[p].weight * x.terms[q].weight;
      const Feature* values = grad + (y.terms[p].index * int64_t(pooled_width) + x.terms[q].index) * bin + c;
      for (int b = 0; b < Blocks; ++b) sum[b] += load(values + b * lanes) * weight;
    }
  }
  for (int b = 0; b < Blocks; ++b) store(cell + c + b * lanes, sum[b]);
}

template <typename Feature, typename T>
FASTRCNN_INLINE void spread_channel(const AxisSums<T>& y, const AxisSums<T>& x, int i, int j, const Feature* grad,
                                    int pooled_width, int64_t bin, int64_t c, T* cell) {
  T sum = cell[c];
  for (int p = y.begin[i]; p < y.begin[i + 1]; ++p) {
    for (int q = x.begin[j]; q < x.begin[j + 1]; ++q) {
      const T weight = y.terms[p].weight * x.terms[q].weight;
      const int64_t b = y.terms[p].index * int64_t(pooled_width) + x.terms[q].index;
      sum += static_cast<T>(grad[b * bin + c]) * weight;
    }
  }
  cell[c] = sum;
}

template <typename Feature, typename T>
FASTRCNN_INLINE void spread_roi_typed(const AxisSums<T>& y, const AxisSums<T>& x, const Feature* grad, int pooled_width,
                                      int64_t bin, T* map, int64_t row, int64_t cell_size, int64_t channels) {
  constexpr int lanes = kLanes<T>;
  for (int i = 0; i < y.count; ++i) {
    for (int j = 0; j < x.count; ++j) {
      T* cell = map + i * row + j * cell_size;
      int64_t c = 0;
      for (; c + 8 * lanes <= channels; c += 8 * lanes) spread_block<8>(y, x, i, j, grad, pooled_width, bin, c, cell);
      for (; c + 4 * lanes <= channels; c += 4 * lanes) spread_block<4>(y, x, i, j, grad, pooled_width, bin, c, cell);
      for (; c + lanes <= channels; c += lanes) spread_block<1>(y, x, i, j, grad, pooled_width, bin, c, cell);
      for (; c < channels; ++c) spread_channel(y, x, i, j, grad, pooled_width, bin, c, cell);
    }
  }
}

template <typename T, typename To>
FASTRCNN_INLINE void copy_typed(const T* from, int64_t from_row, To* to, int64_t to_row, int64_t rows,
                                int64_t columns) {
  constexpr int lanes = kLanes<T>;
  for (int64_t i = 0; i < rows; ++i, from += from_row, to += to_row) {
    int64_t j = 0;
    for (; j + lanes <= columns; j += lanes) store(to + j, load(from + j));
    for (; j < columns; ++j) to[j] = static_cast<To>(from[j]);
  }
}

// Four numbers of a size, as bits.
template <size_t size>
struct FourOf;
template <>
struct FourOf<2> {
  using type = uint16_t __attribute__((vector_size(8)));
};
template <>
struct FourOf<4> {
  using type = uint32_t __attribute__((vector_size(16)));
};
template <>
struct FourOf<8> {
  using type = uint64_t __attribute__((vector_size(32)));
};

// Four rows of four numbers: rows are interleaved by twos, then by ones.
template <typename T>
FASTRCNN_INLINE void transpose_4x4(const T* from, int64_t from_row, T* to, int64_t to_row) {
  using Four = typename FourOf<sizeof(T)>::type;
  Four r[4];
  for (int k = 0; k < 4; ++k) __builtin_memcpy(&r[k], from + k * from_row, sizeof(Four));
  const Four a = __builtin_shuffle(r[0], r[2], Four{0, 4, 1, 5}), b = __builtin_shuffle(r[1], r[3], Four{0, 4, 1, 5});
  const Four c = __builtin_shuffle(r[0], r[2], Four{2, 6, 3, 7}), d = __builtin_shuffle(r[1], r[3], Four{2, 6, 3, 7});
  r[0] = __builtin_shuffle(a, b, Four{0, 4, 1, 5});
  r[1] = __builtin_shuffle(a, b, Four{2, 6, 3, 7});
  r[2] = __builtin_shuffle(c, d, Four{0, 4, 1, 5});
  r[3] = __builtin_shuffle(c, d, Four{2, 6, 3, 7});
  for (int k = 0; k < 4; ++k) __builtin_memcpy(to + k * to_row, &r[k], sizeof(Four));
}

// In squares of kSquare numbers a side: cache lines on either side are used up at once.
constexpr int64_t kSquare = 16;

template <typename T>
FASTRCNN_INLINE void transpose_typed(const T* from, int64_t from_row, T* to, int64_t to_row, int64_t rows,
                                     int64_t columns) {
  for (int64_t j0 = 0; j0 < columns; j0 += kSquare) {
    for (int64_t i0 = 0; i0 < rows; i0 += kSquare) {
      const int64_t i1 = i0 + kSquare < rows ? i0 + kSquare : rows,
                    j1 = j0 + kSquare < columns ? j0 + kSquare : columns;
      for (int64_t i = i0; i < i1; i += 4) {
        for (int64_t j = j0; j < j1; j += 4) {
          if (i + 4 <= i1 && j + 4 <= j1) {
            transpose_4x4(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
          } else {
            for (int64_t k = i; k < i1 && k < i + 4; ++k) {
              for (int64_t l = j; l < j1 && l < j + 4; ++l) to[l * to_row + k] = from[k * from_row + l];
            }
          }
        }
      }
    }
  }
}

template <typename T, typename Feature>
FASTRCNN_INLINE void transpose_sums_typed(const T* from, int64_t from_row, Feature* to, int64_t to_row, int64_t rows,
                                          int64_t columns) {
  Feature square[kSquare * kSquare];
  for (int64_t i = 0; i < rows; i += kSquare) {
    for (int64_t j = 0; j < columns; j += kSquare) {
      const int64_t height = rows - i < kSquare ? rows - i : kSquare,
                    width = columns - j < kSquare ? columns - j : kSquare;
      copy_typed(from + i * from_row + j, from_row, square, kSquare, height, width);
      transpose_typed(square, kSquare, to + j * to_row + i, to_row, height, width);
    }
  }
}

#define FASTRCNN_ROI_ALIGN_KERNELS(Feature, T)                                                                        \
  void pool_roi(const AxisSums<T>& y, const AxisSums<T>& x, const Feature* map, int64_t row, int64_t channels,        \
                Feature* out) {                                                                                       \
    pool_roi_typed<Feature, T>(y, x, map, row, channels, out);                                                        \
  }                                                                                                                   \
  void spread_roi(const AxisSums<T>& y, const AxisSums<T>& x, const Feature* grad, int pooled_width, int64_t bin,     \
                  T* map, int64_t row, int64_t cell, int64_t channels) {                                              \
    spread_roi_typed<Feature, T>(y, x, grad, pooled_width, bin, map, row, cell, channels);                            \
  }                                                                                                                   \
  void transpose(const Feature* from, int64_t from_row, Feature* to, int64_t to_row, int64_t rows, int64_t columns) { \
    transpose_typed(from, from_row, to, to_row, rows, columns);                                                       \
  }                                                                                                                   \
  void transpose_sums(const T* from, int64_t from_row, Feature* to, int64_t to_row, int64_t rows, int64_t columns) {  \
    transpose_sums_typed(from, from_row, to, to_row, rows, columns);                                                  \
  }                                                                                                                   \
  void copy_sums(const T* from, int64_t from_row, Feature* to, int64_t to_row, int64_t rows, int64_t columns) {       \
    copy_typed(from, from_row, to, to_row, rows, columns);                                                            \
  }

FASTRCNN_ROI_ALIGN_KERNELS(float, float)
FASTRCNN_ROI_ALIGN_KERNELS(double, double)
FASTRCNN_ROI_ALIGN_KERNELS(torch::headeronly::Half, float)
FASTRCNN_ROI_ALIGN_KERNELS(torch::headeronly::BFloat16, float)

#undef FASTRCNN_ROI_ALIGN_KERNELS

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
