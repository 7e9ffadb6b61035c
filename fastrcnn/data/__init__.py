"""From annotation files and pictures to batches.

| module | in | out |
|---|---|---|
| coco, voc, yolo, classes, read | annotation files | Dataset of Samples: paths, sizes, boxes |
| image | file or array | uint8 BGR [h, w, 3]; resized; float [3, h, w]; padded batch [N, 3, H, W] |
| cache | path and scale | the resized image, from disk if it was kept there |
| transforms | Sample | Item: image tensor, boxes in its pixels |
| loader | Dataset | Batches, from worker processes |
"""
