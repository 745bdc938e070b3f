"""Data: sources of images and boxes, their checks, the two views of an image, batches.

Nothing is re-exported here, so that importing one file does not import the libraries of all the others:

* `images`: one image file -> an upright RGB picture; `Sample`, what every source gives.
* `sources`: `open_source`, the one door, and what a source must offer; `coco`, `voc`, `yolo`, `hub`, `folder`,
  `file_list` and `tar_shards` are the readers behind it, `coco_json` has the checks of a COCO file.
* `writing`: a labeled source in another format; `category_ids`: ids where a format has no place for them.
* `splits`: which images of a labeled set keep their labels; `write_coco_splits` writes both parts as COCO files.
* `validation`: the checks before training starts.
* `augment`: labeled, weak and strong views. `loading`: data sets, sampler, batches. `aspect_ratio`: the same draws in
  batches of similar shape.
* `digits`: a small data set of real digits on real photographs, written to disk as COCO.
"""
