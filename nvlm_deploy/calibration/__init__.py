"""Calibration sets to samples: real prompts of tiles, tags, thumbnails and text, as the model sees them."""

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.loading import CalibrationSamples, load_samples
from nvlm_deploy.calibration.sample import CalibrationSample
from nvlm_deploy.calibration.summary import CalibrationSummary
from nvlm_deploy.calibration.token_classes import UNSEEN, TokenClass

__all__ = [
    "UNSEEN",
    "CalibrationSample",
    "CalibrationSamples",
    "CalibrationSummary",
    "Conversation",
    "TokenClass",
    "load_samples",
]
