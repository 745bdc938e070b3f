"""The detector as it goes to the Hub; the files beside this one are copied there, this one is not."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection

from .configuration_semidetr import SemiDetrConfig
from .image_processing_semidetr import SemiDetrImageProcessor
from .modeling_semidetr import SemiDetrForObjectDetection, SemiDetrModel

AutoConfig.register("semidetr", SemiDetrConfig, exist_ok=True)
AutoModel.register(SemiDetrConfig, SemiDetrModel, exist_ok=True)
AutoModelForObjectDetection.register(SemiDetrConfig, SemiDetrForObjectDetection, exist_ok=True)
AutoImageProcessor.register(
    SemiDetrConfig, image_processor_classes={"torchvision": SemiDetrImageProcessor}, exist_ok=True
)
# Saving a model or an image processor also writes the files of this folder, so that trust_remote_code=True loads it
# where this package is not installed.
SemiDetrConfig.register_for_auto_class()
SemiDetrModel.register_for_auto_class("AutoModel")
SemiDetrForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
SemiDetrImageProcessor.register_for_auto_class()

__all__ = ["SemiDetrConfig", "SemiDetrForObjectDetection", "SemiDetrImageProcessor", "SemiDetrModel"]
