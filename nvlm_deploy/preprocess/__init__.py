"""Images to tiles and questions to token ids: the two contracts that every part shares."""

from __future__ import annotations

from nvlm_deploy.preprocess.images import MAX_IMAGE_PIXELS, ImageSource, load_image
from nvlm_deploy.preprocess.messages import ContentPart, Message, gather_images
from nvlm_deploy.preprocess.prompt import Prompt, TokenizationMode
from nvlm_deploy.preprocess.prompt_builder import DEFAULT_SYSTEM_MESSAGE, PromptBuilder
from nvlm_deploy.preprocess.tiles import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TiledImage,
    choose_grid,
    normalize_tiles,
    preprocess_images,
    tile_image,
)
from nvlm_deploy.preprocess.tokenizer import StreamDecoder, Tokenizer
from nvlm_deploy.preprocess.written_images import IMAGE_MARKER

__all__ = [
    "DEFAULT_SYSTEM_MESSAGE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_MARKER",
    "MAX_IMAGE_PIXELS",
    "ContentPart",
    "ImageSource",
    "Message",
    "Prompt",
    "PromptBuilder",
    "StreamDecoder",
    "TiledImage",
    "TokenizationMode",
    "Tokenizer",
    "choose_grid",
    "gather_images",
    "load_image",
    "normalize_tiles",
    "preprocess_images",
    "tile_image",
]
