"""NVLM-X and NVLM-H in the quantizer: what streams, what cross-attention sees, what is folded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nvlm_deploy.calibration import UNSEEN, CalibrationSample, CalibrationSamples, TokenClass, load_samples
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.config.calibration import read_calibration_set
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.models import Nvlm, load_model
from nvlm_deploy.pipeline.quantize import quantize_checkpoint
from nvlm_deploy.pipeline.quantize_plan import QuantizeRequest, plan_quantize
from nvlm_deploy.preprocess import Tokenizer
from nvlm_deploy.quantization.groups import LinearGroup, all_groups
from nvlm_deploy.quantization.observe import Observed, choose_rows
from nvlm_deploy.quantization.statistics import activation_statistics, spool_bytes
from nvlm_deploy.quantization.stream import CalibrationStream, StreamSettings
from nvlm_deploy.quantization.streamed_model import StreamedModel
from tests.variants import KINDS, logits, write_calibration, write_set, write_variant

CPU = torch.device("cpu")
WEIGHTS = dict.fromkeys(TokenClass, 1.0)


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(request.param, tmp_path_factory.mktemp("cross") / request.param)


@pytest.fixture(scope="module")
def calibration_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration(tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> ModelWeights:
    return ModelWeights(CheckpointReader(checkpoint))


@pytest.fixture(scope="module")
def samples(checkpoint: Path, weights: ModelWeights, calibration_file: Path) -> CalibrationSamples:
    spec, directory = read_calibration_set(str(calibration_file))
    return load_samples(spec, weights.reader.config, Tokenizer.from_directory(checkpoint), directory)


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> Nvlm:
    return load_model(checkpoint)


@contextmanager
def inputs_of(model: Nvlm, names: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """The inputs that named modules see inside the block."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name].append(inputs[0].flatten(0, -2))

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(keep, name)) for name in names]
    yield seen
    for handle in handles:
        handle.remove()


class Streamed:
    """Everything that one pass over the samples leaves behind."""

    def __init__(self, weights: ModelWeights, samples: CalibrationSamples, folder: Path) -> None:
        model = StreamedModel(weights, CPU)
        self.stream = CalibrationStream(model, samples, folder, StreamSettings(rows=60, seed=5))
        self.logits: list[Tensor] = []
        self.folders: list[set[str]] = []
        self.seen: dict[str, Observed] = {}
        self.hidden: dict[tuple[str, int], Tensor] = {}
        model.model.language.lm_head.register_forward_hook(lambda _m, _x, y: self.logits.append(y[0]))
        for index, step in enumerate(self.stream.steps):
            self.seen |= self.stream.observe(index)
            self.stream.finish(index)
            self.folders.append({path.name for path in folder.iterdir()})
            for number in range(len(samples)):
                if self.stream._spool.has(index + 1, number):
                    self.hidden[step.name, number] = self.stream._spool.read(index + 1, number).x
        self.meta = all(parameter.is_meta for parameter in model.model.parameters())


@pytest.fixture(scope="module")
def streamed(
    weights: ModelWeights, samples: CalibrationSamples, tmp_path_factory: pytest.TempPathFactory
) -> Streamed:
    return Streamed(weights, samples, tmp_path_factory.mktemp("spool"))


class TestStream:
    def test_hidden_states_and_logits_are_those_of_the_whole_model(
        self, streamed: Streamed, whole: Nvlm, samples: CalibrationSamples
    ) -> None:
        for number, sample in enumerate(samples):
            names = ["language.layers.0", "language.layers.1", "language.norm"]
            with inputs_of(whole, names) as seen:
                expected = logits(whole, sample)
            steps = ["language.embed_tokens", "language.layers.0", "language.layers.1"]
            for name, step in zip(names, steps, strict=True):
                assert torch.equal(streamed.hidden[step, number][0], seen[name][0]), (step, number)
            assert torch.equal(streamed.logits[number], expected)

    def test_tiles_are_kept_once_and_nothing_in_memory(self, streamed: Streamed) -> None:
        assert streamed.meta
        steps = [step.name for step in streamed.stream.steps]
        first = steps.index("language.embed_tokens")
        for index, folders in enumerate(streamed.folders[:-1]):
            assert folders == {f"{index + 1:04}"} | ({"tiles"} if index >= first else set())
        assert streamed.folders[-1] == {"tiles"}

    def test_the_hidden_states_fit_into_what_is_promised(
        self, weights: ModelWeights, samples: CalibrationSamples, tmp_path: Path
    ) -> None:
        stream = CalibrationStream(StreamedModel(weights, CPU), samples, tmp_path, StreamSettings(rows=0))
        most, headers = 0, 1000 * 3 * len(samples)
        for index in range(len(stream.steps)):
            stream.observe(index)
            most = max(most, sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))
            stream.finish(index)
        assert most <= spool_bytes(weights.reader.config, samples.summary) + headers

    def test_groups_see_what_the_whole_model_s_linears_see(
        self, streamed: Streamed, whole: Nvlm, samples: CalibrationSamples, weights: ModelWeights
    ) -> None:
        groups = [group for group in all_groups(weights.reader.config) if ".cross." in group.linears[0]]
        assert list(streamed.seen) == [group.linears[0] for group in all_groups(weights.reader.config)]
        names = [group.linears[0] for group in groups]
        passed: dict[str, list[tuple[Tensor, CalibrationSample]]] = {name: [] for name in names}
        for sample in samples:
            with inputs_of(whole, names) as seen:
                logits(whole, sample)
            for name in names:
                passed[name] += [(x, sample) for x in seen[name]]
        for group in groups:
            self._check_group(group, streamed.seen[group.linears[0]], passed[group.linears[0]], samples)

    @staticmethod
    def _check_group(
        group: LinearGroup,
        observed: Observed,
        passed: list[tuple[Tensor, CalibrationSample]],
        samples: CalibrationSamples,
    ) -> None:
        assert len(passed) == 2, "text alone skips cross-attention"
        classes = {sample.label: spelled_classes(group, sample) for sample in samples}
        values = torch.cat([x for x, _ in passed])
        kinds = torch.cat([torch.tensor(classes[sample.label]) for _, sample in passed])
        assert len(values) == len(kinds)
        for kind in TokenClass:
            mine = values[kinds == kind]
            assert observed.count_C[kind] == mine.numel()
            if len(mine):
                assert torch.equal(observed.amax_CK[kind], mine.abs().amax(0))
        arrays = [np.array(rows, np.int8) for rows in classes.values()]
        chosen = dict(zip(classes, choose_rows(arrays, WEIGHTS, 60, 5), strict=True))
        kept = torch.cat([x[chosen[sample.label]] for x, sample in passed])
        assert torch.equal(observed.rows_RK(), kept)


def spelled_classes(group: LinearGroup, sample: CalibrationSample) -> list[int]:
    """Classes of what a group of cross-attention sees, spelled out tile by tile."""
    assert sample.cross is not None
    if group.rows == "seeing":
        ends = [*sample.cross.visible.tolist(), *[sample.cross.visible[-1].tolist()] * len(sample)]
        pairs = zip(sample.token_classes.tolist(), ends, strict=False)
        return [kind if first < end else UNSEEN for kind, (first, end) in pairs]
    hybrid = bool(sample.cross.tags) or bool(len(sample.cross.sequence_tiles))
    longest = max((len(tag) for tag in sample.cross.tags), default=0)
    rows: list[int] = []
    for tiles in sample.tiles_per_image:
        for tile in range(1, tiles + 1):
            if hybrid and tile == tiles:
                continue
            if hybrid:
                # A token is a byte here.
                tag = len(f"<tile_{tile}>")
                rows += [TokenClass.TAG] * tag + [UNSEEN] * (longest - tag)
            rows += [TokenClass.THUMBNAIL if tile == tiles > 1 else TokenClass.VISUAL] * 4
    return rows


def test_token_classes_and_the_summary_count_what_the_model_sees(
    samples: CalibrationSamples, weights: ModelWeights
) -> None:
    sample, _, two = samples
    tag_bytes = [len(f"<tile_{number}>") for number in range(1, 12)]
    thumbnail = len(weights.reader.config.thumbnail_tag)
    tags = int((sample.token_classes == TokenClass.TAG).sum())
    if weights.reader.config.variant == "X":
        assert tags == sum(tag_bytes) + thumbnail
        assert not len(sample.visual_positions)
        assert samples.summary.cross_tiles == samples.summary.tiles
    else:
        # The byte that joins `<Image>` with the tag is its own token here.
        assert tags == thumbnail
        assert (sample.token_classes == TokenClass.THUMBNAIL).sum() == 4
        assert (sample.entry_classes == UNSEEN).sum() == 9 * 1
        assert samples.summary.cross_tiles == samples.summary.tiles - samples.summary.images
    summary = samples.summary.tokens
    assert summary["visual"] + summary["thumbnail"] == 4 * samples.summary.tiles
    assert all(summary.values())
    assert not any("no token" in warning for warning in samples.summary.warnings)
    assert two.sees_tiles[-1]
    assert not two.sees_tiles[0]


@pytest.mark.parametrize("seed", range(3))
def test_scales_of_whole_powers_fold_away_to_the_bit(
    checkpoint: Path, whole: Nvlm, samples: CalibrationSamples, seed: int
) -> None:
    """What the quantizer does to norms and weights, with scales that no float has to round."""
    folded, generator = load_model(checkpoint), torch.Generator().manual_seed(seed)
    changed = 0
    with torch.no_grad():
        for group in all_groups(whole.config):
            first = folded.get_submodule(group.linears[0])
            assert isinstance(first, nn.Linear)
            scale_K = 2.0 ** torch.randint(-3, 4, (first.in_features,), generator=generator)
            if group.norm is None:
                continue
            for name, parameter in folded.get_submodule(group.norm).named_parameters():
                assert name in ("weight", "bias")
                parameter.mul_(scale_K)
            for name in group.linears:
                linear = folded.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                linear.weight.div_(scale_K)
            changed += 1
    assert changed > 8
    for sample in samples:
        assert torch.equal(logits(folded, sample), logits(whole, sample))


@pytest.mark.parametrize(
    ("variant", "image", "words"),
    [
        ("X", False, "calibrates the cross-attention of this NVLM-X"),
        ("H", False, "calibrates the cross-attention of this NVLM-H"),
        ("H", True, "has no image of several tiles"),
    ],
)
def test_a_set_that_shows_cross_attention_nothing_is_refused(
    variant: Any, image: bool, words: str, calibration_file: Path, tmp_path: Path
) -> None:
    line = {"question": "What is it?", "answer": "A square."}
    if image:
        line["image"] = str(calibration_file.parent / "square.png")
    made, output = write_variant(variant, tmp_path / "made"), tmp_path / "out"
    plan = plan_quantize(QuantizeRequest(made, "fp8", output, str(write_set(tmp_path, [line]))))
    with pytest.raises(NvlmError, match=words):
        quantize_checkpoint(plan)


def test_statistics_have_the_classes_that_each_input_sees(
    weights: ModelWeights, samples: CalibrationSamples
) -> None:
    seen = {each.linears[0]: each for each in activation_statistics(weights, samples).inputs}
    stem = "language.layers.1.cross.attention"
    variant = weights.reader.config.variant
    entries = {"X": {"visual", "thumbnail"}, "H": {"tag", "visual"}}[variant]
    assert set(seen[f"{stem}.k_proj"].classes) == entries
    assert seen[f"{stem}.k_proj"].linears == (f"{stem}.k_proj", f"{stem}.v_proj")
    assert seen[f"{stem}.k_proj"].clipped_by_text is None
    # Behind an image of NVLM-H there is text alone; tags of NVLM-X see their tiles. The second image's
    # thumbnail and its tag come behind the first image.
    readers = {"X": {"text", "tag"}, "H": {"text"}}[variant]
    assert set(seen[f"{stem}.q_proj"].classes) == readers
    assert set(seen[f"{stem}.o_proj"].classes) == readers
