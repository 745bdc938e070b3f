"""How detections are scored: by the rules of COCO and by those of Pascal VOC."""
