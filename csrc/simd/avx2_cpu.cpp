// The hot loops for the level avx2; see level.h. Every header comes before the target pragma.
#include "level.h"

#if FASTRCNN_X86_LEVELS

#include <immintrin.h>

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

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define FASTRCNN_LEVEL avx2
#define FASTRCNN_VECTOR_BITS 256
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
#pragma GCC pop_options

#endif
