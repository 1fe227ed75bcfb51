"""Activation statistics against the whole model, and the counting of magnitudes against plain comparison."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_deploy.calibration import CalibrationSamples, TokenClass, load_samples
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.config.calibration import ClassWeights, read_calibration_set
from nvlm_deploy.errors import NvlmError, UnsuitableError
from nvlm_deploy.models import load_model
from nvlm_deploy.preprocess import Tokenizer, normalize_tiles
from nvlm_deploy.quantization.observe import CLASSES, Observed
from nvlm_deploy.quantization.statistics import (
    ActivationStatistics,
    ClassStatistics,
    activation_statistics,
    total,
)
from nvlm_deploy.quantization.stream import CalibrationStream, StreamSettings
from nvlm_deploy.quantization.streamed_model import StreamedModel

CPU = torch.device("cpu")
KEEP_NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def weights(repository: Path) -> ModelWeights:
    return ModelWeights(CheckpointReader(repository / "examples" / "nvlm-d-tiny"))


@pytest.fixture(scope="module")
def samples(weights: ModelWeights) -> CalibrationSamples:
    spec, folder = read_calibration_set("documents", ["count=2"])
    reader = weights.reader
    return load_samples(spec, reader.config, Tokenizer.from_directory(reader.directory), folder)


@pytest.fixture(scope="module")
def measured(
    weights: ModelWeights, samples: CalibrationSamples, tmp_path_factory: pytest.TempPathFactory
) -> ActivationStatistics:
    scratch = tmp_path_factory.mktemp("scratch")
    statistics = activation_statistics(weights, samples, scratch=scratch)
    assert not list(scratch.iterdir()), "hidden states are removed"
    return statistics


def by_class_in_the_whole_model(
    directory: Path, samples: CalibrationSamples, linear: str
) -> dict[TokenClass, torch.Tensor]:
    """Everything that a decoder's linear sees, by token class, from one pass of the reference model."""
    model, rows, classes = load_model(directory), [], []
    handle = model.get_submodule(linear).register_forward_pre_hook(
        lambda _, x: rows.append(x[0].flatten(0, -2))
    )
    with torch.no_grad():
        for sample in samples:
            visual = model.encode_tiles(torch.from_numpy(normalize_tiles(sample.tiles))).flatten(0, 1)
            mask = torch.zeros(len(sample), dtype=torch.bool)
            mask[torch.from_numpy(sample.visual_positions)] = True
            embeds = model.embed(torch.from_numpy(sample.input_ids)[None], visual, mask[None])
            model.language(embeds)
            classes.append(torch.from_numpy(sample.token_classes))
    handle.remove()
    seen, kinds = torch.cat(rows), torch.cat(classes)
    return {kind: seen[kinds == kind] for kind in TokenClass}


def bfloat16_above(amax: float) -> float:
    """The smallest BF16 number that is not below `amax`, found by trying."""
    number = torch.tensor(amax).bfloat16()
    if float(number) < amax:
        number = torch.nextafter(number, torch.tensor(float("inf")).bfloat16())
    return float(number)


@pytest.mark.parametrize("linear", ["language.layers.1.mlp.down_proj", "language.layers.1.attention.o_proj"])
def test_counts_are_those_of_the_whole_model(
    linear: str, weights: ModelWeights, samples: CalibrationSamples, measured: ActivationStatistics
) -> None:
    seen = by_class_in_the_whole_model(weights.reader.directory, samples, linear)
    (statistics,) = (each for each in measured.inputs if each.linears[0] == linear)
    by_text = bfloat16_above(float(seen[TokenClass.TEXT].abs().max()))
    clipped = {kind: int((x.abs() > by_text).sum()) for kind, x in seen.items()}
    assert sum(clipped.values()) > 0, "nothing is clipped, so nothing is tested"
    for kind, x in seen.items():
        each = statistics.classes[kind.name.lower()]
        others = torch.cat([y for other, y in seen.items() if other is not kind])
        unseen = bfloat16_above(float(others.abs().max()))
        assert each.values == x.numel()
        assert each.amax == pytest.approx(float(x.abs().max()), rel=1e-4)
        assert each.rms == pytest.approx(float(x.square().mean().sqrt()), rel=1e-4)
        assert each.clipped_by_text == pytest.approx(clipped[kind], abs=1)
        assert each.clipped_unseen == pytest.approx(int((x.abs() > unseen).sum()), abs=1)
    values = sum(x.numel() for kind, x in seen.items() if kind is not TokenClass.TEXT)
    assert statistics.clipped_by_text == pytest.approx(sum(clipped.values()) / values, rel=0.2)


def test_the_ranges_of_another_set_clip_what_is_beyond_them(
    weights: ModelWeights, samples: CalibrationSamples, measured: ActivationStatistics
) -> None:
    linear = "language.layers.1.mlp.down_proj"
    seen = by_class_in_the_whole_model(weights.reader.directory, samples, linear)
    ranges = {linear: measured.ranges[linear] / 4, "language.layers.2.mlp.down_proj": 1e9}
    against = activation_statistics(weights, samples, against=ranges)
    found = {each.linears[0]: each for each in against.inputs}
    limit = bfloat16_above(ranges[linear])
    for kind, x in seen.items():
        counted = found[linear].classes[kind.name.lower()].clipped_against
        assert counted == pytest.approx(int((x.abs() > limit).sum()), abs=1)
    assert found[linear].everything.clipped_against
    assert found["language.layers.2.mlp.down_proj"].everything.clipped_against == 0
    assert found["vision.layers.0.mlp.fc1"].everything.clipped_against is None
    assert found["vision.layers.0.mlp.fc1"].against_amax is None


def test_the_parts_are_the_sums_of_their_layers(measured: ActivationStatistics) -> None:
    assert list(measured.parts) == ["vision", "projector", "language", "lm_head"]
    assert set(measured.parts["vision"]) == {"visual", "thumbnail"}
    visual = [each.classes["visual"] for each in measured.inputs if each.part == "language"]
    summed = measured.parts["language"]["visual"]
    assert summed.values == sum(each.values for each in visual)
    assert summed.amax == max(each.amax for each in visual)
    assert summed.clipped_by_text == sum(each.clipped_by_text or 0 for each in visual)
    # Text never reaches the tower, so nothing can be said of a scale from text.
    assert measured.parts["vision"]["visual"].clipped_by_text is None
    report = measured.to_dict()
    assert [layer["step"] for layer in report["layers"]] == [layer.step for layer in measured.layers]
    decoder = [layer for layer in report["layers"] if layer["step"].startswith("language.layers.")]
    assert all(layer["keys_amax"] > 0 and layer["values_amax"] > 0 for layer in decoder)


def test_what_is_unknown_counts_nothing() -> None:
    known, unknown = ClassStatistics(4, 1.0, 4.0, 0, 1, 2, 3), ClassStatistics(6, 2.0, 6.0, 1, None, None)
    assert total([known, unknown]) == ClassStatistics(10, 2.0, 10.0, 1, 1, 2, 3)
    assert total([unknown, unknown]).clipped_by_text is None
    assert unknown.share(unknown.clipped_unseen) is None
    assert known.to_dict()["clipped_unseen"] == 0.5


def test_modelopt_is_not_needed(
    weights: ModelWeights, samples: CalibrationSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    assert activation_statistics(weights, samples).layers


def test_too_small_a_disk_is_said_before_any_work(weights: ModelWeights, samples: CalibrationSamples) -> None:
    huge = CalibrationSamples(
        samples._source, samples._builder, samples._chosen, replace(samples.summary, tiles=10**15)
    )
    with pytest.raises(UnsuitableError, match="and the hidden states of the calibration set take") as caught:
        activation_statistics(weights, huge)
    assert "--scratch" in str(caught.value.hint)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_must_be_there(weights: ModelWeights, samples: CalibrationSamples) -> None:
    with pytest.raises(UnsuitableError, match="there is no device 'cuda:0' on this machine"):
        activation_statistics(weights, samples, device="cuda:0")


MAGNITUDES = st.floats(0, 2.0**127, width=32) | st.floats(0, 2.0**-120, width=32) | st.just(0.0)


@settings(deadline=None)
@given(st.lists(st.tuples(MAGNITUDES, st.booleans()), min_size=1, max_size=40), MAGNITUDES)
def test_values_beyond_a_limit_are_counted_exactly(values: list[tuple[float, bool]], limit: float) -> None:
    """Signs do not matter, and a value that equals the limit is not clipped."""
    rounded = bfloat16_above(limit)
    x_R1 = torch.tensor([-x if negative else x for x, negative in values] + [rounded]).unsqueeze(1)
    seen = Observed.empty(1, CPU, histogram=True)
    seen.add(x_R1, torch.full((len(x_R1),), TokenClass.TAG), KEEP_NONE)
    beyond_C = seen.beyond_C(rounded)
    assert int(beyond_C[TokenClass.TAG]) == int((x_R1.abs() > rounded).sum())
    assert int(beyond_C.sum()) == int(beyond_C[TokenClass.TAG])
    assert seen.limit([TokenClass.TAG]) == bfloat16_above(float(x_R1.abs().max()))
    assert seen.limit([TokenClass.TEXT]) is None


def test_counting_in_pieces_misses_nothing() -> None:
    x_RK = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0))
    classes_R = torch.arange(1000) % CLASSES
    seen = Observed.empty(7, CPU, histogram=True)
    seen.add(x_RK, classes_R, KEEP_NONE)
    limit = 1.5
    counts = [int((x_RK[classes_R == kind].abs() > limit).sum()) for kind in range(CLASSES)]
    assert seen.beyond_C(limit).tolist() == counts
    assert seen.histogram_CB is not None
    assert int(seen.histogram_CB.sum()) == x_RK.numel()


def test_class_weights_of_the_set_choose_the_rows(
    weights: ModelWeights, samples: CalibrationSamples, tmp_path: Path
) -> None:
    model = StreamedModel(weights, CPU)
    every = ClassWeights(visual=0.0, thumbnail=0.0, tag=0.25)
    stream = CalibrationStream(model, samples, tmp_path, StreamSettings(every, rows=10**6))
    tower, decoder = (
        next(i for i, s in enumerate(stream.steps) if s.name == f"{p}.layers.0")
        for p in ("vision", "language")
    )
    for index in range(decoder + 1):
        seen = stream.observe(index)
        stream.finish(index)
        if index == tower:
            with pytest.raises(NvlmError, match="class weights of the calibration set leave no input"):
                seen["vision.layers.0.mlp.fc1"].rows_RK()
    (attention, *_), tokens = seen.values(), samples.summary.tokens
    assert len(attention.rows_RK()) == tokens["text"] + tokens["tag"]
