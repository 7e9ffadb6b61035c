"""The operators: usable alone, on CPU and CUDA tensors. Their definitions in plain PyTorch are in ops/reference.py."""

from fastrcnn.ops._library import BUILD_INFO
from fastrcnn.ops.anchors import base_anchors, grid_anchors
from fastrcnn.ops.assignment import assign_max_iou
from fastrcnn.ops.box_coding import decode_boxes, encode_boxes
from fastrcnn.ops.box_iou import box_iou
from fastrcnn.ops.conv3x3 import conv3x3
from fastrcnn.ops.iou_loss import iou_loss
from fastrcnn.ops.nms import batched_nms, nms, nms_padded
from fastrcnn.ops.proposals import generate_proposals
from fastrcnn.ops.roi_align import multilevel_roi_align, roi_align
from fastrcnn.ops.roi_pool import roi_pool
from fastrcnn.ops.selection import select_detections

__all__ = [
    "BUILD_INFO",
    "assign_max_iou",
    "base_anchors",
    "batched_nms",
    "box_iou",
    "conv3x3",
    "decode_boxes",
    "encode_boxes",
    "generate_proposals",
    "grid_anchors",
    "iou_loss",
    "multilevel_roi_align",
    "nms",
    "nms_padded",
    "roi_align",
    "roi_pool",
    "select_detections",
]
