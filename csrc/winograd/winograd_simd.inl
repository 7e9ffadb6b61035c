// The loops of Winograd's convolution, compiled once per SIMD level. Weights are transformed first: G g G^T of 16
// output channels at a time. Then a task goes through three steps:
//
// 1. B^T d B of all its tiles, 16 input channels at a time: 36 matrices [tiles, channels].
// For one or two panels of output channels after the other:
// 2. each of the 36 matrices times its weights [channels, 16 or 32]. A block of the product, some tiles high, stays in
//    registers while all channels are added up.
// 3. A^T m A of all tiles, the bias, ReLU, and out.
//
// The matrices of step 1 lie as the second step reads them: the tiles in groups as high as its blocks; a group is
// [channel / 16][tile][channel % 16], so that a place in it is a constant distance away.
//
// Every sum is one chain of fused multiply-adds in the order of the channels, whatever the level and the task.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

// Blocks of products that fit into the registers, beside a row of weights and one input.
#if FASTRCNN_VECTOR_BITS == 512
constexpr int kMostRows = 14, kMostPanels = 2;
#elif FASTRCNN_VECTOR_BITS == 256
constexpr int kMostRows = 6, kMostPanels = 1;
#else
constexpr int kMostRows = 4, kMostPanels = 1;
#endif

// How many rows of weights are prefetched: for the first block of tiles they come from the third-level cache.
constexpr int kPrefetchedRows = 32;

// --- weights ---------------------------------------------------------------------------------------------------------

// G g
FASTRCNN_INLINE void transform_taps(const DoubleVec (&g)[kTaps], DoubleVec (&to)[kPatch]) {
  constexpr double a = kPointA, b = kPointB, aa = a * a, bb = b * b;
  const DoubleVec even_a = g[0] + aa * g[2], odd_a = a * g[1];
  const DoubleVec even_b = g[0] + bb * g[2], odd_b = b * g[1];
  to[0] = g[0] * (1 / (aa * bb));
  to[1] = (even_a + odd_a) * (1 / (2 * aa * (aa - bb)));
  to[2] = (even_a - odd_a) * (1 / (2 * aa * (aa - bb)));
  to[3] = (even_b + odd_b) * (1 / (2 * bb * (bb - aa)));
  to[4] = (even_b - odd_b) * (1 / (2 * bb * (bb - aa)));
  to[5] = g[2];
}

// Half a panel of output channels at a time, in float64: rounding then adds nothing to the errors of the products.
void transform_weights(const Conv3x3Params& p, int64_t panel, int64_t first_channel, int64_t last_channel, float* to) {
  constexpr int lanes = kLanes<double>;
  using HalfPanel = float __attribute__((vector_size(lanes * sizeof(float))));
  const int64_t o0 = panel * kPanel, rest = p.out_channels - o0, outputs = rest < kPanel ? rest : kPanel;
  for (int64_t c = first_channel; c < last_channel; ++c) {
    double taps[kTaps * kTaps][kPanel] = {};  // missing output channels are 0
    for (int64_t o = 0; o < outputs; ++o) {
      const float* const weight = p.weight + ((o0 + o) * p.channels + c) * kTaps * kTaps;
      for (int t = 0; t < kTaps * kTaps; ++t) taps[t][o] = weight[t];
    }
    for (int lane = 0; lane < kPanel; lane += lanes) {
      DoubleVec half[kTaps][kPatch];  // G g, by columns of the weight
      for (int x = 0; x < kTaps; ++x) {
        DoubleVec column[kTaps];
        for (int y = 0; y < kTaps; ++y) column[y] = load_unaligned<DoubleVec>(&taps[y * kTaps + x][lane]);
        transform_taps(column, half[x]);
      }
      for (int i = 0; i < kPatch; ++i) {
        const DoubleVec row[kTaps] = {half[0][i], half[1][i], half[2][i]};
        DoubleVec transformed[kPatch];
        transform_taps(row, transformed);
        for (int j = 0; j < kPatch; ++j) {
          const HalfPanel rounded = __builtin_convertvector(transformed[j], HalfPanel);
          __builtin_memcpy(to + ((i * kPatch + j) * p.channels + c) * kPanel + lane, &rounded, sizeof rounded);
        }
      }
    }
  }
}

// --- the tiles of a task, in groups ----------------------------------------------------------------------------------

struct TileGroups {
  int64_t tiles, count;

  int64_t first(int64_t group) const { return group * tiles / count; }
};

FASTRCNN_INLINE TileGroups tile_groups(int64_t tiles) { return {tiles, (tiles + kMostRows - 1) / kMostRows}; }

// --- transforms along one axis ---------------------------------------------------------------------------------------

// B^T d
FASTRCNN_INLINE void transform_inputs(const FloatRegister (&d)[kPatch], FloatRegister (&to)[kPatch]) {
  constexpr float a = kPointA, b = kPointB, aa = a * a, bb = b * b;
  const FloatRegister even_a = multiply_add(broadcast(-bb), d[2], d[4]),
                      odd_a = multiply_add(broadcast(-bb), d[1], d[3]);
  const FloatRegister even_b = multiply_add(broadcast(-aa), d[2], d[4]),
                      odd_b = multiply_add(broadcast(-aa), d[1], d[3]);
  to[0] = multiply_add(broadcast(aa * bb), d[0], multiply_add(broadcast(-aa - bb), d[2], d[4]));
  to[1] = multiply_add(broadcast(a), odd_a, even_a);
  to[2] = multiply_add(broadcast(-a), odd_a, even_a);
  to[3] = multiply_add(broadcast(b), odd_b, even_b);
  to[4] = multiply_add(broadcast(-b), odd_b, even_b);
  to[5] = multiply_add(broadcast(aa * bb), d[1], multiply_add(broadcast(-aa - bb), d[3], d[5]));
}

// A^T m
FASTRCNN_INLINE void transform_products(const FloatRegister (&m)[kPatch], FloatRegister (&to)[kTile]) {
  constexpr float a = kPointA, b = kPointB, aa = a * a, bb = b * b;
  const FloatRegister even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const FloatRegister even_b = m[3] + m[4], odd_b = m[3] - m[4];
  to[0] = m[0] + even_a + even_b;
  to[1] = multiply_add(broadcast(a), odd_a, broadcast(b) * odd_b);
  to[2] = multiply_add(broadcast(aa), even_a, broadcast(bb) * even_b);
  to[3] = multiply_add(broadcast(aa * a), odd_a, multiply_add(broadcast(bb * b), odd_b, m[5]));
}

// --- 1. inputs -------------------------------------------------------------------------------------------------------

// Where the 6x6 inputs of a tile lie: cells outside the image are zeros. In (y, x) order.
FASTRCNN_INLINE void find_patch(const Conv3x3Params& p, int64_t tile, const float* zeros, const float** cells) {
  const int64_t image = tile / (p.tile_rows * p.tile_columns), row = tile / p.tile_columns % p.tile_rows;
  const int64_t y0 = row * kTile - 1, x0 = tile % p.tile_columns * kTile - 1;
  for (int64_t i = 0; i < kPatch; ++i) {
    for (int64_t j = 0; j < kPatch; ++j) {
      const int64_t y = y0 + i, x = x0 + j;
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      cells[i * kPatch + j] = inside ? p.x + ((image * p.height + y) * p.width + x) * p.channels : zeros;
    }
  }
}

// Sixteen channels from c on of a tile; `to` is where the first of the 36 results belongs. The cells of the next tile
// of the row, which lie `next_tile` further, are prefetched, as far as they are not of this tile too.
FASTRCNN_INLINE void transform_patch(const float* const* cells, int64_t c, int64_t next_tile, float* to,
                                     int64_t stride) {
  for (int64_t lane = 0; lane < kPanel; lane += kRegisterLanes) {
    FloatRegister half[kPatch][kPatch];  // B^T d
    for (int j = 0; j < kPatch; ++j) {
      FloatRegister column[kPatch], transformed[kPatch];
      for (int i = 0; i < kPatch; ++i) {
        column[i] = load_unaligned<FloatRegister>(cells[i * kPatch + j] + c + lane);
        if (j >= 2 && lane == 0) __builtin_prefetch(cells[i * kPatch + j] + c + next_tile, 0, 2);
      }
      transform_inputs(column, transformed);
      for (int i = 0; i < kPatch; ++i) half[i][j] = transformed[i];
    }
    for (int i = 0; i < kPatch; ++i) {
      FloatRegister transformed[kPatch];
      transform_inputs(half[i], transformed);
      for (int j = 0; j < kPatch; ++j) store_unaligned(to + (i * kPatch + j) * stride + lane, transformed[j]);
    }
  }
}

FASTRCNN_INLINE void transform_all_inputs(const Conv3x3Params& p, const Conv3x3Task& task, const TileGroups& groups,
                                          const Conv3x3Scratch& scratch) {
  const int64_t stride = inputs_stride(groups.tiles, p.channels), panels = panels_of(p.channels);
  const int64_t whole = p.channels / kPanel;
  for (int64_t c = 0; c < p.channels; ++c) scratch.zeros[c] = 0.0f;
  const float* cells[kProducts];
  for (int64_t g = 0; g < groups.count; ++g) {
    const int64_t first = groups.first(g), rows = groups.first(g + 1) - first;
    float* const group = scratch.inputs + first * panels * kPanel;
    for (int64_t r = 0; r < rows; ++r) {
      find_patch(p, task.first_tile + first + r, scratch.zeros, cells);
      float* to = group + r * kPanel;
      for (int64_t panel = 0; panel < whole; ++panel) {
        transform_patch(cells, panel * kPanel, kTile * p.channels, to + panel * rows * kPanel, stride);
      }
      if (whole < panels) {  // a copy, because a vector would reach beyond the cell
        float rest[kProducts][kPanel] = {};
        const float* copies[kProducts];
        for (int k = 0; k < kProducts; ++k) {
          for (int64_t c = whole * kPanel; c < p.channels; ++c) rest[k][c - whole * kPanel] = cells[k][c];
          copies[k] = rest[k];
        }
        transform_patch(copies, 0, 0, to + whole * rows * kPanel, stride);
      }
    }
  }
}

// --- 2. products -----------------------------------------------------------------------------------------------------

// to[Rows, Panels * 16] = inputs [channels / 16][Rows][16] times weights, panels [channels, 16].
template <int Rows, int Panels>
FASTRCNN_INLINE void multiply_block(const float* inputs, const float* weights, int64_t weights_stride, int64_t channels,
                                    float* to) {
  constexpr int registers = kPanel / kRegisterLanes, columns = Panels * registers;
  FloatRegister sums[Rows][columns] = {};
  for (int64_t c0 = 0; c0 < channels; c0 += kPanel) {
    const int64_t n = channels - c0 < kPanel ? channels - c0 : kPanel;
    for (int64_t i = 0; i < n; ++i) {
      FloatRegister row[columns];
      for (int q = 0; q < Panels; ++q) __builtin_prefetch(weights + q * weights_stride + kPrefetchedRows * kPanel);
      for (int q = 0; q < columns; ++q) {
        row[q] =
            load_unaligned<FloatRegister>(weights + q / registers * weights_stride + q % registers * kRegisterLanes);
      }
      for (int r = 0; r < Rows; ++r) {
        const FloatRegister input = broadcast(inputs[r * kPanel + i]);
        for (int q = 0; q < columns; ++q) sums[r][q] = multiply_add(input, row[q], sums[r][q]);
      }
      weights += kPanel;
    }
    inputs += Rows * kPanel;
  }
  for (int r = 0; r < Rows; ++r) {
    for (int q = 0; q < columns; ++q) store_unaligned(to + r * 2 * kPanel + q * kRegisterLanes, sums[r][q]);
  }
}

// A block of `rows` <= Rows.
template <int Rows, int Panels>
FASTRCNN_INLINE void multiply_rows(int64_t rows, const float* inputs, const float* weights, int64_t weights_stride,
                                   int64_t channels, float* to) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return multiply_rows<Rows - 1, Panels>(rows, inputs, weights, weights_stride, channels, to);
  }
  multiply_block<Rows, Panels>(inputs, weights, weights_stride, channels, to);
}

// scratch.products [kProducts][tiles][2 * kPanel] for the panels whose transformed weights these are.
template <int Panels>
static void multiply_panels(const Conv3x3Params& p, const float* panel_weights, const TileGroups& groups,
                            const Conv3x3Scratch& scratch) {
  const int64_t padded = panels_of(p.channels) * kPanel, weights_stride = panel_size(p.channels);
  for (int64_t k = 0; k < kProducts; ++k) {
    const float* const inputs = scratch.inputs + k * inputs_stride(groups.tiles, p.channels);
    const float* const weights = panel_weights + k * p.channels * kPanel;
    float* const to = scratch.products + k * products_stride(groups.tiles);
    for (int64_t g = 0; g < groups.count; ++g) {
      const int64_t first = groups.first(g);
      multiply_rows<kMostRows, Panels>(groups.first(g + 1) - first, inputs + first * padded, weights, weights_stride,
                                       p.channels, to + first * 2 * kPanel);
    }
  }
}

// --- 3. outputs ------------------------------------------------------------------------------------------------------

// The 4x4 outputs [16] of a tile.
FASTRCNN_INLINE void transform_tile(const float* products, int64_t stride, const float* bias, bool relu,
                                    float (&out)[kTile][kTile][kPanel]) {
  for (int64_t lane = 0; lane < kPanel; lane += kRegisterLanes) {
    FloatRegister half[kTile][kPatch];  // A^T m
    for (int j = 0; j < kPatch; ++j) {
      FloatRegister column[kPatch], transformed[kTile];
      for (int i = 0; i < kPatch; ++i) {
        column[i] = load_unaligned<FloatRegister>(products + (i * kPatch + j) * stride + lane);
      }
      transform_products(column, transformed);
      for (int i = 0; i < kTile; ++i) half[i][j] = transformed[i];
    }
    const FloatRegister add = load_unaligned<FloatRegister>(bias + lane), zero = {};
    for (int i = 0; i < kTile; ++i) {
      FloatRegister transformed[kTile];
      transform_products(half[i], transformed);
      for (int j = 0; j < kTile; ++j) {
        const FloatRegister value = transformed[j] + add;
        store_unaligned(&out[i][j][lane], relu ? (value < zero ? zero : value) : value);  // NaN stays
      }
    }
  }
}

// The outputs of `count` panels from `panel` on. A tile's come one after the other, so that its lines of memory do too.
FASTRCNN_INLINE void write_panels(const Conv3x3Params& p, const Conv3x3Task& task, int64_t panel, int64_t count,
                                  const TileGroups& groups, const Conv3x3Scratch& scratch) {
  const int64_t c0 = panel * kPanel;
  float bias[2 * kPanel] = {};
  if (p.bias) {
    for (int64_t c = 0; c < count * kPanel && c0 + c < p.out_channels; ++c) bias[c] = p.bias[c0 + c];
  }
  for (int64_t t = 0; t < groups.tiles; ++t) {
    const int64_t tile = task.first_tile + t, image = tile / (p.tile_rows * p.tile_columns);
    const int64_t y0 = tile / p.tile_columns % p.tile_rows * kTile, x0 = tile % p.tile_columns * kTile;
    const int64_t rows = p.height - y0 < kTile ? p.height - y0 : kTile;
    const int64_t columns = p.width - x0 < kTile ? p.width - x0 : kTile;
    float* const out = p.out + ((image * p.height + y0) * p.width + x0) * p.out_channels + c0;
    for (int64_t i = 0; i < count; ++i) {
      float values[kTile][kTile][kPanel];
      transform_tile(scratch.products + (2 * t + i) * kPanel, products_stride(groups.tiles), bias + i * kPanel, p.relu,
                     values);
      const int64_t rest = p.out_channels - c0 - i * kPanel, n = rest < kPanel ? rest : kPanel;
      for (int64_t y = 0; y < rows; ++y) {
        for (int64_t x = 0; x < columns; ++x) {
          float* const to = out + (y * p.width + x) * p.out_channels + i * kPanel;
          if (p.past_caches) {
            for (int64_t lane = 0; lane < kPanel; lane += kRegisterLanes) {
              store_past_caches(to + lane, load_unaligned<FloatRegister>(values[y][x] + lane));
            }
          } else if (n == kPanel) {
            __builtin_memcpy(to, values[y][x], sizeof values[y][x]);
          } else {
            for (int64_t c = 0; c < n; ++c) to[c] = values[y][x][c];
          }
        }
      }
    }
  }
}

void convolve_tiles(const Conv3x3Params& p, const Conv3x3Task& task, const Conv3x3Scratch& scratch) {
  const TileGroups groups = tile_groups(task.last_tile - task.first_tile);
  transform_all_inputs(p, task, groups, scratch);
  for (int64_t panel = task.first_panel; panel < task.last_panel;) {
    const float* const weights = task.weights + (panel - task.first_panel) * panel_size(p.channels);
    const int64_t count = task.last_panel - panel >= kMostPanels ? kMostPanels : 1;
    if (count == kMostPanels) {
      multiply_panels<kMostPanels>(p, weights, groups, scratch);
    } else {
      multiply_panels<1>(p, weights, groups, scratch);
    }
    write_panels(p, task, panel, count, groups, scratch);
    panel += count;
  }
  if (p.past_caches) finish_stores_past_caches();
}

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
