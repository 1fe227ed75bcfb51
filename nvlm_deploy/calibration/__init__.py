"""Calibration sets to samples: real prompts of tiles, tags, thumbnails and text, as the model sees them."""

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.loading import CalibrationSamples, load_samples
from nvlm_deploy.calibration.sample import CalibrationSample, TokenClass
from nvlm_deploy.calibration.summary import CalibrationSummary

__all__ = [
    "CalibrationSample",
    "CalibrationSamples",
    "CalibrationSummary",
    "Conversation",
    "TokenClass",
    "load_samples",
]
