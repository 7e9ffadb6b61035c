// The loops of box coding, compiled once per SIMD level. Boxes come and go as (x1, y1, x2, y2); in between, a group of
// them lies in separate arrays, over which the maths of math/box.h is vectorised.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

constexpr int64_t kCodingGroup = 64;

template <typename T>
struct BoxGroup {
  T x1[kCodingGroup], y1[kCodingGroup], x2[kCodingGroup], y2[kCodingGroup];
};

template <typename T>
FASTRCNN_INLINE Box<T> box_of(const BoxGroup<T>& group, int64_t i) {
  return {group.x1[i], group.y1[i], group.x2[i], group.y2[i]};
}

template <typename T>
FASTRCNN_INLINE void set_box(BoxGroup<T>& group, int64_t i, const Box<T>& box) {
  group.x1[i] = box.x1, group.y1[i] = box.y1, group.x2[i] = box.x2, group.y2[i] = box.y2;
}

// Boxes [0, n), 0 < n <= kCodingGroup; the first one fills what is missing.
template <typename T>
FASTRCNN_INLINE void load_group(const Box<T>* from, int64_t n, BoxGroup<T>& group) {
  if (n == kCodingGroup) {
    for (int64_t i = 0; i < kCodingGroup; ++i) set_box(group, i, from[i]);
  } else {
    for (int64_t i = 0; i < kCodingGroup; ++i) set_box(group, i, from[i < n ? i : 0]);
  }
}

template <typename T>
FASTRCNN_INLINE void store_group(const BoxGroup<T>& group, int64_t n, Box<T>* to) {
  if (n == kCodingGroup) {
    for (int64_t i = 0; i < kCodingGroup; ++i) to[i] = box_of(group, i);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = box_of(group, i);
  }
}

// The boxes that the pairs [first, first + n) belong to, and the images that these are clipped to.
template <typename T>
struct PairGroup {
  BoxGroup<T> boxes;
  T height[kCodingGroup], width[kCodingGroup];
};

template <typename T>
FASTRCNN_INLINE void load_pairs(const DecodeParams<T>& p, int64_t first, int64_t n, PairGroup<T>& pairs) {
  if (p.num_classes == 1 && (!p.max_shape || p.shape_stride == 0)) {
    load_group(p.boxes + first, n, pairs.boxes);
    if (!p.max_shape) return;
    for (int64_t k = 0; k < kCodingGroup; ++k) pairs.height[k] = p.max_shape[0], pairs.width[k] = p.max_shape[1];
    return;
  }
  for (int64_t filled = 0; filled < n;) {  // the pairs of one box after the other
    const int64_t i = (first + filled) / p.num_classes, after = (i + 1) * p.num_classes - first;
    const int64_t end = after < n ? after : n;
    const Box<T> box = p.boxes[i];
    const T height = p.max_shape ? p.max_shape[i * p.shape_stride] : T(0);
    const T width = p.max_shape ? p.max_shape[i * p.shape_stride + 1] : T(0);
    for (int64_t k = filled; k < end; ++k) {
      set_box(pairs.boxes, k, box);
      pairs.height[k] = height, pairs.width[k] = width;
    }
    filled = end;
  }
}

template <typename T>
FASTRCNN_INLINE void encode_range_typed(const Box<T>* boxes, const Box<T>* targets, const DeltaScale<T>& scale_given,
                                        int64_t first, int64_t last, Box<T>* out) {
  const DeltaScale<T> scale = scale_given;  // a copy, which no store can change
  BoxGroup<T> box, target, deltas;
  for (int64_t i = first; i < last; i += kCodingGroup) {
    const int64_t n = last - i < kCodingGroup ? last - i : kCodingGroup;
    load_group(boxes + i, n, box);
    load_group(targets + i, n, target);
    for (int64_t k = 0; k < kCodingGroup; ++k) set_box(deltas, k, encode(box_of(box, k), box_of(target, k), scale));
    store_group(deltas, n, out + i);
  }
}

template <typename T>
FASTRCNN_INLINE void decode_range_typed(const DecodeParams<T>& p, int64_t first, int64_t last, Box<T>* out) {
  const DeltaScale<T> scale = p.scale;
  PairGroup<T> pairs = {};
  BoxGroup<T> deltas, decoded;
  for (int64_t j = first; j < last; j += kCodingGroup) {
    const int64_t n = last - j < kCodingGroup ? last - j : kCodingGroup;
    load_pairs(p, j, n, pairs);
    load_group(p.deltas + j, n, deltas);
    for (int64_t k = 0; k < kCodingGroup; ++k) {
      set_box(decoded, k, decode(box_of(pairs.boxes, k), box_of(deltas, k), scale));
    }
    if (p.max_shape) {
      for (int64_t k = 0; k < kCodingGroup; ++k) {
        set_box(decoded, k, clip(box_of(decoded, k), pairs.height[k], pairs.width[k]));
      }
    }
    store_group(decoded, n, out + j);
  }
}

template <typename T, bool kClipped>
FASTRCNN_INLINE void decode_backward_range_typed(const DecodeParams<T>& p, const Box<T>* grad, int64_t first,
                                                 int64_t last, Box<T>* out) {
  const DeltaScale<T> scale = p.scale;
  PairGroup<T> pairs = {};
  BoxGroup<T> deltas, grads;
  for (int64_t j = first; j < last; j += kCodingGroup) {
    const int64_t n = last - j < kCodingGroup ? last - j : kCodingGroup;
    load_pairs(p, j, n, pairs);
    load_group(p.deltas + j, n, deltas);
    load_group(grad + j, n, grads);
    for (int64_t k = 0; k < kCodingGroup; ++k) {
      set_box(grads, k,
              decode_backward(box_of(pairs.boxes, k), box_of(deltas, k), scale, kClipped, pairs.height[k],
                              pairs.width[k], box_of(grads, k)));
    }
    store_group(grads, n, out + j);
  }
}

#define FASTRCNN_BOX_CODING_KERNELS(T)                                                                                 \
  void encode_range(const Box<T>* boxes, const Box<T>* targets, const DeltaScale<T>& scale, int64_t first,             \
                    int64_t last, Box<T>* out) {                                                                       \
    encode_range_typed(boxes, targets, scale, first, last, out);                                                       \
  }                                                                                                                    \
  void decode_range(const DecodeParams<T>& p, int64_t first, int64_t last, Box<T>* out) {                              \
    decode_range_typed(p, first, last, out);                                                                           \
  }                                                                                                                    \
  void decode_backward_range(const DecodeParams<T>& p, const Box<T>* grad, int64_t first, int64_t last, Box<T>* out) { \
    if (p.max_shape) {                                                                                                 \
      decode_backward_range_typed<T, true>(p, grad, first, last, out);                                                 \
    } else {                                                                                                           \
      decode_backward_range_typed<T, false>(p, grad, first, last, out);                                                \
    }                                                                                                                  \
  }

FASTRCNN_BOX_CODING_KERNELS(float)
FASTRCNN_BOX_CODING_KERNELS(double)

#undef FASTRCNN_BOX_CODING_KERNELS

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
