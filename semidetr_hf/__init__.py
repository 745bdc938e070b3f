"""Semi-supervised object detection with detection transformers, for Hugging Face transformers."""

import sys
from pathlib import Path

__version__ = "0.1.0"
__all__ = ["SemiDetrConfig", "SemiDetrForObjectDetection", "SemiDetrImageProcessor", "SemiDetrModel", "__version__"]

# Importing the classes registers them with transformers, and takes seconds. The program `semidetr` shows its help and
# completes words without them; those of its commands that need them import semidetr_hf.model.
if Path(sys.argv[0]).stem != "semidetr":
    from .model import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor, SemiDetrModel
