"""Make the probes of a kit: the reference answers a few held-out questions, one layer in memory at a time."""

from __future__ import annotations

from pathlib import Path

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.models.device import open_device
from nvlm_deploy.progress import ProgressCallback
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.probes import ProbeSet, write_probes
from nvlm_deploy.verify.prompts import image_prompts, text_prompts
from nvlm_deploy.verify.walk import ModelWalk

PROBE_STAGE = "probes"
_REFERENCE = "the released checkpoint in FP32"
# One page of every kind, and two texts.
_IMAGES, _TEXTS = 5, 2


def make_probes(directory: Path, released: Path, device: str, progress: ProgressCallback) -> ProbeSet:
    """Write probes of the released checkpoint into `directory`.

    Raises:
        NvlmError: the checkpoint is not in order.
        UnsuitableError: there is no such device.
    """
    contract = Contract(released)
    prompts = [*image_prompts(contract, _IMAGES), *text_prompts(contract, _TEXTS)]
    weights = ModelWeights(CheckpointReader(released))
    model = StreamedModel(weights, open_device(device))

    def report(stage: str, done: int, total: int) -> None:
        progress(PROBE_STAGE, done, total)

    result = ModelWalk(model, report).run(prompts, frozenset(range(_IMAGES)))
    tokens_per_tile = weights.reader.config.visual_tokens_per_tile
    return write_probes(directory, _REFERENCE, prompts, result.logits, result.visual, tokens_per_tile)
