// The hot loops for the level avx2; see level.h. Every header comes before the target pragma.
#include "level.h"

#if FASTRCNN_X86_LEVELS

#include <immintrin.h>

#include "../assignment/assignment_simd.h"
#include "../nms/nms_simd.h"
#include "../roi_align/roi_align_simd.h"

#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#define FASTRCNN_LEVEL avx2
#define FASTRCNN_F16C  // g++ 12 does not define __F16C__ after the pragma
#include "vec.inl"
#include "../assignment/assignment_simd.inl"
#include "../nms/nms_simd.inl"
#include "../roi_align/roi_align_simd.inl"
#pragma GCC pop_options

#endif
