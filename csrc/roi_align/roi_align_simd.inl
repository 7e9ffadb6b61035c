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
                                      int64_t bin, T* map, int64_t row, int64_t channels) {
  constexpr int lanes = kLanes<T>;
  for (int i = 0; i < y.count; ++i) {
    for (int j = 0; j < x.count; ++j) {
      T* cell = map + i * row + j * channels;
      int64_t c = 0;
      for (; c + 8 * lanes <= channels; c += 8 * lanes) spread_block<8>(y, x, i, j, grad, pooled_width, bin, c, cell);
      for (; c + 4 * lanes <= channels; c += 4 * lanes) spread_block<4>(y, x, i, j, grad, pooled_width, bin, c, cell);
      for (; c + lanes <= channels; c += lanes) spread_block<1>(y, x, i, j, grad, pooled_width, bin, c, cell);
      for (; c < channels; ++c) spread_channel(y, x, i, j, grad, pooled_width, bin, c, cell);
    }
  }
}

// Squares of lanes x lanes numbers, read and written in whole vectors; what is left over one by one.
template <typename T, typename From, typename To>
FASTRCNN_INLINE void transpose_typed(const From* from, int64_t from_row, To* to, int64_t to_row, int64_t rows,
                                     int64_t columns) {
  constexpr int lanes = kLanes<T>;
  for (int64_t i = 0; i < rows; i += lanes) {
    for (int64_t j = 0; j < columns; j += lanes) {
      if (i + lanes <= rows && j + lanes <= columns) {
        T square[lanes][lanes];
        for (int k = 0; k < lanes; ++k) {
          const Vec<T> values = load(from + (i + k) * from_row + j);
          for (int l = 0; l < lanes; ++l) square[l][k] = values[l];
        }
        for (int l = 0; l < lanes; ++l) store(to + (j + l) * to_row + i, load(square[l]));
      } else {
        for (int64_t k = i; k < (i + lanes < rows ? i + lanes : rows); ++k) {
          for (int64_t l = j; l < (j + lanes < columns ? j + lanes : columns); ++l) {
            to[l * to_row + k] = static_cast<To>(static_cast<T>(from[k * from_row + l]));
          }
        }
      }
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

#define FASTRCNN_ROI_ALIGN_KERNELS(Feature, T)                                                                        \
  void pool_roi(const AxisSums<T>& y, const AxisSums<T>& x, const Feature* map, int64_t row, int64_t channels,        \
                Feature* out) {                                                                                       \
    pool_roi_typed<Feature, T>(y, x, map, row, channels, out);                                                        \
  }                                                                                                                   \
  void spread_roi(const AxisSums<T>& y, const AxisSums<T>& x, const Feature* grad, int pooled_width, int64_t bin,     \
                  T* map, int64_t row, int64_t channels) {                                                            \
    spread_roi_typed<Feature, T>(y, x, grad, pooled_width, bin, map, row, channels);                                  \
  }                                                                                                                   \
  void transpose(const Feature* from, int64_t from_row, Feature* to, int64_t to_row, int64_t rows, int64_t columns) { \
    transpose_typed<T>(from, from_row, to, to_row, rows, columns);                                                    \
  }                                                                                                                   \
  void transpose_sums(const T* from, int64_t from_row, Feature* to, int64_t to_row, int64_t rows, int64_t columns) {  \
    transpose_typed<T>(from, from_row, to, to_row, rows, columns);                                                    \
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
