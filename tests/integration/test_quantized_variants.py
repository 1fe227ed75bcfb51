"""Quantized checkpoints of NVLM-X and NVLM-H: what they hold, what they compute, and a stop on the way."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nvlm_deploy.calibration import CalibrationSamples, load_samples
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.config.calibration import read_calibration_set
from nvlm_deploy.models import load_model
from nvlm_deploy.models.quantized import load_quantized_model
from nvlm_deploy.pipeline.quantize import quantize_checkpoint
from nvlm_deploy.pipeline.quantize_plan import QuantizeRequest, plan_quantize
from nvlm_deploy.pipeline.quantize_progress import STAGE
from nvlm_deploy.preprocess import Tokenizer
from nvlm_deploy.quantization.checkpoint import QuantizedReader, QuantizedWeights
from nvlm_deploy.quantization.groups import all_groups
from nvlm_deploy.quantization.search import ScaleSearch
from nvlm_deploy.quantization.stream import CalibrationStream, StreamSettings
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.sensitivity.simulate import install, quantized_linears
from tests.variants import KINDS, logits, write_calibration, write_variant

CPU = torch.device("cpu")
# Static scales alone, codes, groups with clips, two levels of scales, and folded scales.
MADE = (
    ("X", "fp8-vit-fp8"),
    ("X", "int4-gptq"),
    ("H", "int4-awq"),
    ("H", "nvfp4"),
    ("H-other", "int8-sq"),
)
_FOLDING = ("int8-sq", "int4-awq")
# The widths are no multiples of 128, and three of AWQ's eleven ratios are as good a test.
_SMALL = ("weights.language.group_size=32", "awq.alpha_step=0.5")


@dataclass(frozen=True, slots=True)
class Made:
    """A released checkpoint, and one that was quantized by a recipe."""

    recipe: str
    released: Path
    directory: Path
    calibration: Path

    @property
    def weights(self) -> ModelWeights:
        return ModelWeights(CheckpointReader(self.released))

    @property
    def stored(self) -> QuantizedWeights:
        return QuantizedWeights(QuantizedReader(self.directory))

    def request(self, output: Path) -> QuantizeRequest:
        changes = _SMALL if "4" in self.recipe and self.recipe != "nvfp4" else ()
        return QuantizeRequest(
            self.released, self.recipe, output, calibration=str(self.calibration), overrides=changes
        )

    def samples(self) -> CalibrationSamples:
        spec, directory = read_calibration_set(str(self.calibration))
        config = CheckpointReader(self.released).config
        return load_samples(spec, config, Tokenizer.from_directory(self.released), directory)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("released")
    return {kind: write_variant(kind, folder / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        # The import warns about versions of other packages.
        warnings.simplefilter("ignore")
        pytest.importorskip("modelopt.torch.quantization")
    return write_calibration(tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module", params=MADE, ids=" ".join)
def made(
    request: pytest.FixtureRequest,
    released: dict[str, Path],
    calibration: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    kind, recipe = request.param
    found = Made(recipe, released[kind], tmp_path_factory.mktemp("quantized") / recipe, calibration)
    quantize_checkpoint(plan_quantize(found.request(found.directory)))
    return found


def test_gates_norms_and_tags_are_as_released(made: Made) -> None:
    weights, stored = made.weights, made.stored
    cross = [name for name in weights.names() if ".cross." in name]
    matrices = {name for name in cross if len(weights.shape(name)) == 2}
    assert matrices <= set(stored.storages)
    for name in [*cross, "language.embed_tokens.weight"]:
        folded = name.endswith("norm.weight") and made.recipe in _FOLDING
        if name not in matrices and not folded:
            assert torch.equal(stored.read(name), weights.read(name)), name


def test_norms_of_cross_attention_take_scales_over(made: Made) -> None:
    """norm x scale x weight is the released product, but for the weight's own rounding."""
    weights, stored, compared = made.weights, made.stored, 0
    for group in all_groups(weights.reader.config):
        for name in group.weights if ".cross." in group.linears[0] else ():
            before_NK, after_NK = weights.read(name, torch.float32), stored.read(name)
            scale_K = stored.pre_quant_scale(name)
            if group.norm is not None:
                assert scale_K is None
                before_NK = before_NK * weights.read(f"{group.norm}.weight", torch.float32)
                after_NK = after_NK * stored.read(f"{group.norm}.weight", torch.float32)
            elif made.recipe in _FOLDING:
                assert scale_K is not None
                after_NK = after_NK * scale_K
            error = float((after_NK - before_NK).norm() / before_NK.norm())
            assert error < (0.25 if "4" in made.recipe else 0.04), (name, error)
            compared += 1
    assert compared >= 4


def test_keys_and_values_share_their_scales(made: Made) -> None:
    stored = made.stored
    keys, values = (f"language.layers.1.cross.attention.{kind}_proj.weight" for kind in "kv")
    for read in (stored.input_scale, stored.pre_quant_scale):
        a, b = read(keys), read(values)
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)


def test_the_model_computes_what_the_quantizer_made(made: Made, tmp_path: Path) -> None:
    """Against linears quantized in memory, without a checkpoint in between."""
    plan, samples = plan_quantize(made.request(tmp_path / "none")), made.samples()
    storages = {name: tensor.storage for name, tensor in plan.quantization.tensors.items()}
    searched = any(storage.algorithm in ("awq", "gptq") for storage in storages.values())
    settings = StreamSettings() if searched else StreamSettings(rows=0)
    stream = CalibrationStream(StreamedModel(plan.weights, CPU), samples, tmp_path / "spool", settings)
    search = ScaleSearch(plan.recipe, storages, plan.weights, CPU)
    exact, simulated = load_model(made.released), load_model(made.released)
    read = load_quantized_model(made.directory)
    for index, step in enumerate(stream.steps):
        install(simulated, quantized_linears(search, step.groups, stream.observe(index)))
        stream.finish(index)
    for sample in samples:
        expected, ours, theirs = (logits(model, sample) for model in (exact, read, simulated))
        lost = (theirs - expected).norm()
        assert lost > 0
        # A folded scale is one rounding more or less, and may move an activation over a tie.
        assert (ours - theirs).norm() < 0.05 * lost


class Stopped(Exception):
    """Stands for a kill."""


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(
    released: dict[str, Path], calibration: Path, tmp_path: Path
) -> None:
    made = Made("int8-sq", released["X"], tmp_path / "whole", calibration)
    quantize_checkpoint(plan_quantize(made.request(made.directory)))
    output = tmp_path / "stopped"
    for percent in (15, 40, 60, 85):

        def stop(stage: str, done: int, total: int, percent: int = percent) -> None:
            if stage == STAGE and 100 * done > percent * total:
                raise Stopped

        with pytest.raises(Stopped):
            quantize_checkpoint(plan_quantize(made.request(output)), stop)
    quantize_checkpoint(plan_quantize(made.request(output)))
    expected = {path.name: path.read_bytes() for path in made.directory.glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in output.glob("*.safetensors")} == expected
