"""`fastrcnn data`: errors of a dataset, seen before training.

| module | in | out |
|---|---|---|
| files | image files | FileReports: size, error, orientation, hashes of the pixels |
| copies | difference hashes | pairs that are nearly equal |
| problems | Datasets, FileReports | Problems: suspicious boxes, images, classes, splits |
| histograms | Datasets | box sizes, aspect ratios, objects per image, as text and picture |
| contact_sheet | Dataset, Problems | pictures of many images with their boxes |
| report | Config | all of it in a folder |
"""
