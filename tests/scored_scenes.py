"""Labeled scenes and detections on them, as COCO has them, for the tests of metrics."""

import random

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def truth(boxes, images=(1,), **extra) -> dict:
    """Return a COCO dict of (image id, category id, x, y, width, height) rows."""
    return {
        "images": [{"id": image_id, "width": 640, "height": 480} for image_id in images],
        "categories": CATEGORIES,
        "annotations": [
            {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box, **extra}
            for number, (image_id, category_id, *box) in enumerate(boxes)
        ],
    }


def found(image_id, category_id, score: float, *box: float) -> dict:
    return {"image_id": image_id, "category_id": category_id, "score": score, "bbox": list(box)}


def scattered_scene(seed: int, number_of_images: int = 6) -> tuple[dict, list[dict]]:
    """Return random boxes of all sizes and detections near some of them."""
    draw = random.Random(seed)
    images = list(range(1, number_of_images + 1))
    boxes = [
        (draw.choice(images), draw.choice([3, 7]), draw.uniform(0, 400), draw.uniform(0, 300), edge, edge * 0.8)
        for edge in (draw.uniform(8, 200) for _ in range(40))
    ]
    detections = []
    for image_id, category_id, x, y, width, height in boxes:
        if draw.random() < 0.8:
            shift = draw.gauss(0, 0.1)
            detections.append(
                found(
                    image_id, category_id, draw.random(), x + shift * width, y, width, height * draw.uniform(0.8, 1.2)
                )
            )
    detections += [found(draw.choice(images), 3, draw.random(), draw.uniform(0, 400), 50, 60, 60) for _ in range(15)]
    return truth(boxes, images=images), detections


def crowded_scene(seed: int) -> tuple[dict, list[dict]]:
    """Return a scene with text as ids, crowds, given areas, images without boxes, and many equal scores."""
    labeled, detections = scattered_scene(seed, number_of_images=9)
    draw = random.Random(seed)
    for box in labeled["annotations"]:
        box["iscrowd"] = int(draw.random() < 0.1)
        if draw.random() < 0.5:
            box["area"] = 0.7 * box["bbox"][2] * box["bbox"][3]
    for entry in [*labeled["annotations"], *detections]:
        entry["image_id"] = f"scene {entry['image_id']}"
    labeled["images"] = [{**image, "id": f"scene {image['id']}"} for image in labeled["images"]]
    detections += [{**detection, "score": 0.5} for detection in detections[::2]]
    return labeled, detections
