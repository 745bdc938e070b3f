"""COCO's average precision; the folder can be given to `evaluate.load`, which copies its files."""
