// The hot loops of the IoU losses, compiled once per SIMD level: the maths of one box (math/iou_loss.h) has no
// branches, so the compiler computes as many boxes at once as a vector has lanes. Boxes do not meet, so this changes no
// bit.
namespace fastrcnn {
namespace FASTRCNN_LEVEL {

template <IouLossKind kind, typename T>
FASTRCNN_INLINE void compute_losses_of(const IouLossParams<T>& p, int64_t first, int64_t last) {
  const IouLossParams<T> q = p;
#pragma GCC ivdep  // the results do not overlap the boxes
  for (int64_t i = first; i < last; ++i) compute_loss<kind>(q, i);
}

template <typename T>
FASTRCNN_INLINE void compute_losses_typed(const IouLossParams<T>& p, int64_t first, int64_t last) {
  switch (p.kind) {
    case IouLossKind::iou_log: return compute_losses_of<IouLossKind::iou_log>(p, first, last);
    case IouLossKind::iou_linear: return compute_losses_of<IouLossKind::iou_linear>(p, first, last);
    case IouLossKind::iou_square: return compute_losses_of<IouLossKind::iou_square>(p, first, last);
    case IouLossKind::giou: return compute_losses_of<IouLossKind::giou>(p, first, last);
    case IouLossKind::diou: return compute_losses_of<IouLossKind::diou>(p, first, last);
    case IouLossKind::ciou: return compute_losses_of<IouLossKind::ciou>(p, first, last);
    case IouLossKind::bounded_iou: return compute_losses_of<IouLossKind::bounded_iou>(p, first, last);
  }
}

void compute_losses(const IouLossParams<float>& p, int64_t first, int64_t last) {
  compute_losses_typed(p, first, last);
}
void compute_losses(const IouLossParams<double>& p, int64_t first, int64_t last) {
  compute_losses_typed(p, first, last);
}

}  // namespace FASTRCNN_LEVEL
}  // namespace fastrcnn
