"""A detector on the Hub: what is put into its repository, its model card, and the upload."""

from .bundle import write_bundle
from .card import TrainingFacts
from .upload import push

__all__ = ["TrainingFacts", "push", "write_bundle"]
