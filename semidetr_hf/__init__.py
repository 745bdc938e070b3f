"""Semi-supervised object detection with detection transformers, for Hugging Face transformers."""

from .model import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor, SemiDetrModel

__version__ = "0.1.0"
__all__ = ["SemiDetrConfig", "SemiDetrForObjectDetection", "SemiDetrImageProcessor", "SemiDetrModel", "__version__"]
