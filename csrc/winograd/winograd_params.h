// Winograd's convolution F(4x4, 3x3): its numbers and what its loops are given. Free of torch.
//
// A tile of 4x4 outputs depends on 6x6 inputs. Along one axis, 4 outputs y of 6 inputs d and 3 weights g are
//     y = A^T ((G g) * (B^T d)),   * element by element: 6 multiplications where the definition has 12
// (Lavin & Gray 2015, Fast Algorithms for Convolutional Neural Networks; along both axes 36 instead of 144). It is the
// multiplication of polynomials through their values at 5 points and infinity: for a point x,
//     its row of G is (1, x, x^2) / product of (x - x') over the other points x',
//     its row of B^T holds the coefficients of the product of (X - x') over the other points x', lowest power first,
//     its column of A^T is (1, x, x^2, x^3),
// and for infinity (0, 0, 1), the coefficients of the product of (X - x') over all points, and (0, 0, 0, 1).
#pragma once

#include <cstdint>

namespace fastrcnn {

// The points are 0, +-kPointA, +-kPointB. Rounding errors depend much on them: on 256 channels of normal numbers their
// root mean square is 1.4e-6 of that of the outputs and the largest 1.4e-5, with the usual points 0, +-1, +-2 3.1e-6
// and 6.7e-5. The coefficients that follow from these points are exact in float32.
constexpr float kPointA = 0.625f, kPointB = 1.5f;

constexpr int kTaps = 3;           // weights, per axis
constexpr int kTile = 4;           // outputs of a tile, per axis
constexpr int kPatch = kTile + 2;  // inputs of a tile, per axis
constexpr int kProducts = kPatch * kPatch;
constexpr int64_t kPanel = 16;  // channels that lie together in the transformed inputs and weights

// Tiles are numbered image by image, row by row.
struct Conv3x3Params {
  const float* x;       // [N, height, width, channels]
  const float* weight;  // [out_channels, channels, kTaps, kTaps]
  const float* bias;    // [out_channels], or null
  float* out;           // [N, height, width, out_channels]
  int64_t num_images, height, width, channels, out_channels;
  int64_t tile_rows, tile_columns;  // of an image
  bool relu, past_caches;           // past_caches: out is aligned to 64 bytes, out_channels a multiple of kPanel
};

// A block of tiles and a range of panels of the output channels.
struct Conv3x3Task {
  int64_t first_tile, last_tile, first_panel, last_panel;
  const float* weights;  // transformed, of these panels: [panels, kProducts, channels, kPanel]
};

inline int64_t panels_of(int64_t channels) { return (channels + kPanel - 1) / kPanel; }

// float32s of a panel's transformed weights.
inline int64_t panel_size(int64_t channels) { return kProducts * channels * kPanel; }

// How far apart, in float32s, the matrices of two products lie: an odd number of cache lines, so that the 36 numbers of
// a tile do not compete for the same place in the first-level cache.
inline int64_t inputs_stride(int64_t tiles, int64_t channels) { return (tiles * panels_of(channels) | 1) * kPanel; }
inline int64_t products_stride(int64_t tiles) { return (2 * tiles + 1) * kPanel; }  // of a pair of panels

// What a task needs besides its arguments.
struct Conv3x3Scratch {
  float* zeros;     // [channels], which the task fills: the inputs outside an image
  float* inputs;    // transformed, kProducts * inputs_stride
  float* products;  // kProducts * products_stride
};

}  // namespace fastrcnn
