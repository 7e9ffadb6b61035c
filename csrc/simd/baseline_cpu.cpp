// The hot loops for the oldest processor of the architecture; see level.h.
#include "level.h"

#include "../assignment/assignment_simd.h"
#include "../iou_loss/iou_loss_simd.h"
#include "../nms/nms_simd.h"
#include "../roi_align/roi_align_simd.h"
#include "../roi_pool/roi_pool_simd.h"

#define FASTRCNN_LEVEL baseline
#include "vec.inl"
#include "../assignment/assignment_simd.inl"
#include "../iou_loss/iou_loss_simd.inl"
#include "../nms/nms_simd.inl"
#include "../roi_align/roi_align_simd.inl"
#include "../roi_pool/roi_pool_simd.inl"
