"""NVLM in plain PyTorch: the reference that every engine is compared with."""

from nvlm_deploy.models.cross_attention import TileMemory
from nvlm_deploy.models.cross_tiles import CrossTiles
from nvlm_deploy.models.decoder import KvCache, LanguageDecoder
from nvlm_deploy.models.loading import load_model, meta_model, new_model
from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.models.nvlm_d import NvlmD
from nvlm_deploy.models.nvlm_h import NvlmH
from nvlm_deploy.models.nvlm_x import NvlmX
from nvlm_deploy.models.packing import Packing
from nvlm_deploy.models.projector import Projector, pixel_shuffle
from nvlm_deploy.models.vision import VisionTower

__all__ = [
    "CrossTiles",
    "KvCache",
    "LanguageDecoder",
    "Nvlm",
    "NvlmD",
    "NvlmH",
    "NvlmX",
    "Packing",
    "Projector",
    "TileMemory",
    "VisionTower",
    "load_model",
    "meta_model",
    "new_model",
    "pixel_shuffle",
]
