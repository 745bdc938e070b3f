"""The classes of a detector, and what they are called in a labeled set."""

from typing import Any

from semidetr_hf.training.evaluation import EvaluationSource


def categories_of(model: Any) -> dict[int, str]:
    """Return category id -> name for class label i of a transformers detector at place i.

    The ids are those of the data set that it was trained on, where its configuration has them; else they count from 0.

    Raises:
        ValueError: if two classes have the same name.
    """
    names = [model.config.id2label[label] for label in sorted(model.config.id2label)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(
            f"the detector has two classes named {twice!r}; give each a name of its own in its config.json"
        )
    ids = getattr(model.config, "category_ids", None) or range(len(names))
    return dict(zip(ids, names, strict=True))


def same_categories(source: EvaluationSource, categories: dict[int, str], where: str) -> list[int]:
    """Return the ids that a labeled set has for the classes of a detector; they are told apart by their names.

    Args:
        source: the labeled set.
        categories: of the detector.
        where: what to call the set in the message.

    Raises:
        ValueError: if the names are not the same.
    """
    id_of = {entry["name"]: entry["id"] for entry in source.coco_ground_truth()["categories"]}
    if set(id_of) != set(categories.values()):
        unknown = sorted(set(id_of) ^ set(categories.values()))
        raise ValueError(
            f"{where}: its categories are not those of the detector, which has {', '.join(categories.values())}; "
            f"only one of the two has {', '.join(unknown)}"
        )
    return [id_of[name] for name in categories.values()]
