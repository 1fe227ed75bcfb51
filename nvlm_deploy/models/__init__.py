"""NVLM in plain PyTorch: the reference that every engine is compared with."""

from nvlm_deploy.models.decoder import KvCache, LanguageDecoder
from nvlm_deploy.models.loading import load_model, meta_model
from nvlm_deploy.models.nvlm_d import NvlmD
from nvlm_deploy.models.projector import Projector, pixel_shuffle
from nvlm_deploy.models.vision import VisionTower

__all__ = [
    "KvCache",
    "LanguageDecoder",
    "NvlmD",
    "Projector",
    "VisionTower",
    "load_model",
    "meta_model",
    "pixel_shuffle",
]
