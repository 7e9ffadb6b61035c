// The hot loop of RoIPool, compiled once per SIMD level. A block of channels meets all cells of the bin before the next
// block, so that its maxima stay in registers or the first-level cache. The cells come in the order of the definition.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

// Channels [c, c + Vectors * lanes).
template <int Vectors, typename T, typename Feature>
FASTRCNN_INLINE void max_of_block(CellRange y, CellRange x, const Feature* map, int width, int64_t channels, int64_t c,
                                  Feature* out, int32_t* argmax) {
  constexpr int lanes = kLanes<T>, count = Vectors * lanes;
  T largest[count], value[count];
  int32_t where[count];
  for (int k = 0; k < count; ++k) largest[k] = lowest_feature<T>(), where[k] = -1;
  for (int row = y.first; row < y.last; ++row) {
    for (int column = x.first; column < x.last; ++column) {
      const int32_t index = row * width + column;
      const Feature* cell = map + index * channels + c;
      for (int v = 0; v < Vectors; ++v) store(value + v * lanes, load(cell + v * lanes));
      for (int k = 0; k < count; ++k) {
        const bool larger = value[k] > largest[k];
        largest[k] = larger ? value[k] : largest[k];
        where[k] = larger ? index : where[k];
      }
    }
  }
  for (int v = 0; v < Vectors; ++v) store(out + c + v * lanes, load(largest + v * lanes));
  __builtin_memcpy(argmax + c, where, sizeof where);
}

// The same for one channel.
template <typename T, typename Feature>
FASTRCNN_INLINE void max_of_channel(CellRange y, CellRange x, const Feature* map, int width, int64_t channels,
                                    int64_t c, Feature* out, int32_t* argmax) {
  T largest = lowest_feature<T>();
  int32_t where = -1;
  for (int row = y.first; row < y.last; ++row) {
    for (int column = x.first; column < x.last; ++column) {
      const int32_t index = row * width + column;
      const T value = static_cast<T>(map[index * channels + c]);
      if (value > largest) largest = value, where = index;
    }
  }
  out[c] = static_cast<Feature>(largest);
  argmax[c] = where;
}

template <typename T, typename Feature>
FASTRCNN_INLINE void max_of_cells_typed(CellRange y, CellRange x, const Feature* map, int width, int64_t channels,
                                        Feature* out, int32_t* argmax) {
  constexpr int lanes = kLanes<T>;
  int64_t c = 0;
  for (; c + 4 * lanes <= channels; c += 4 * lanes) max_of_block<4, T>(y, x, map, width, channels, c, out, argmax);
  for (; c + lanes <= channels; c += lanes) max_of_block<1, T>(y, x, map, width, channels, c, out, argmax);
  for (; c < channels; ++c) max_of_channel<T>(y, x, map, width, channels, c, out, argmax);
}

#define FASTRCNN_ROI_POOL_KERNELS(Feature, T)                                                                \
  void max_of_cells(CellRange y, CellRange x, const Feature* map, int width, int64_t channels, Feature* out, \
                    int32_t* argmax) {                                                                       \
    max_of_cells_typed<T>(y, x, map, width, channels, out, argmax);                                          \
  }

FASTRCNN_ROI_POOL_KERNELS(float, float)
FASTRCNN_ROI_POOL_KERNELS(double, double)
FASTRCNN_ROI_POOL_KERNELS(torch::headeronly::Half, float)
FASTRCNN_ROI_POOL_KERNELS(torch::headeronly::BFloat16, float)

#undef FASTRCNN_ROI_POOL_KERNELS

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
