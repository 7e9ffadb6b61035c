// The hot loops for the oldest processor of the architecture; see level.h.
#include "level.h"

#include "../assignment/assignment_simd.h"
#include "../box_coding/box_coding_simd.h"
#include "../box_iou/box_iou_simd.h"
#include "../iou_loss/iou_loss_simd.h"
#include "../nms/nms_simd.h"
#include "../proposals/proposals_simd.h"
#include "../roi_align/roi_align_simd.h"
#include "../roi_pool/roi_pool_simd.h"
#include "../selection/selection_simd.h"
#include "../winograd/winograd_simd.h"
#include "widen.h"

#define FASTRCNN_LEVEL baseline
#define FASTRCNN_VECTOR_BITS 128
#include "vec.inl"
#include "../assignment/assignment_simd.inl"
#include "../box_coding/box_coding_simd.inl"
#include "../box_iou/box_iou_simd.inl"
#include "../iou_loss/iou_loss_simd.inl"
#include "../nms/nms_simd.inl"
#include "../proposals/proposals_simd.inl"
#include "../roi_align/roi_align_simd.inl"
#include "../roi_pool/roi_pool_simd.inl"
#include "../selection/selection_simd.inl"
#include "../winograd/winograd_simd.inl"
#include "widen.inl"
