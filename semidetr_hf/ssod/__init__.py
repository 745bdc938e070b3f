"""The semi-supervised method, one file per idea of the paper (Semi-DETR, arXiv 2307.08095)."""
