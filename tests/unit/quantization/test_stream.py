"""A model that is streamed step by step computes what the whole one computes, and sees what it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nvlm_deploy.calibration import CalibrationSample, CalibrationSamples, TokenClass
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.calibration import ClassWeights
from nvlm_deploy.models import Nvlm, load_model
from nvlm_deploy.models.decoder import KvCache
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization.groups import all_groups
from nvlm_deploy.quantization.observe import OUTLIER_FACTOR, Observed, choose_rows
from nvlm_deploy.quantization.steps import DecoderLayerStep
from nvlm_deploy.quantization.stream import CalibrationStream, StreamSettings
from nvlm_deploy.quantization.streamed_model import StreamedModel

CPU = torch.device("cpu")


class Streamed:
    """Everything that one pass over the samples leaves behind."""

    def __init__(self, weights: ModelWeights, samples: CalibrationSamples, directory: Path) -> None:
        model = StreamedModel(weights, CPU)
        settings = StreamSettings(ClassWeights(tag=0.0), rows=40, seed=5)
        self.stream = CalibrationStream(model, samples, directory, settings)
        self.seen: dict[str, Observed] = {}
        self.logits: list[Tensor] = []
        model.model.language.lm_head.register_forward_hook(lambda _m, _x, y: self.logits.append(y))
        for index in range(len(self.stream.steps)):
            self.seen.update(self.stream.observe(index))
        self.meta = all(parameter.is_meta for parameter in model.model.parameters())

    def hidden(self, step: str, sample: int) -> Tensor:
        """What a step made of a sample."""
        names = [step.name for step in self.stream.steps]
        return self.stream._spool.read(names.index(step) + 1, sample).x


@pytest.fixture(scope="module")
def streamed(
    weights: ModelWeights, samples: CalibrationSamples, tmp_path_factory: pytest.TempPathFactory
) -> Streamed:
    return Streamed(weights, samples, tmp_path_factory.mktemp("spool"))


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> Nvlm:
    return load_model(checkpoint)


def run_whole(model: Nvlm, sample: CalibrationSample) -> Tensor:
    """The model's own forward pass over one sample: logits [1, S, V]."""
    ids = torch.from_numpy(sample.input_ids).unsqueeze(0)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, torch.from_numpy(sample.visual_positions)] = True
    pixels = torch.from_numpy(normalize_tiles(sample.tiles)) if len(sample.tiles) else None
    with torch.no_grad():
        return model(ids, pixels, mask if pixels is not None else None)


@contextmanager
def hooked(module: nn.Module, take: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Show inputs and outputs of a module to `take`."""
    handle = module.register_forward_hook(lambda _m, inputs, output: take(inputs[0], output))
    yield
    handle.remove()


def keep_output(seen: list[Tensor], _input: Tensor, output: Tensor) -> None:
    seen.append(output)


def test_hidden_states_of_every_layer_and_logits_are_those_of_the_whole_model(
    streamed: Streamed, whole: Nvlm, samples: CalibrationSamples
) -> None:
    layers = {f"vision.layers.{i}": layer for i, layer in enumerate(whole.vision.layers)}
    layers |= {f"language.layers.{i}": layer for i, layer in enumerate(whole.language.layers)}
    layers["projector"] = whole.projector
    compared = 0
    for number, sample in enumerate(samples):
        outputs: dict[str, list[Tensor]] = {name: [] for name in layers}
        with ExitStack() as hooks:
            for name, module in layers.items():
                hooks.enter_context(hooked(module, partial(keep_output, outputs[name])))
            logits = run_whole(whole, sample)
        for name, seen in outputs.items():
            if not seen:
                assert len(sample.tiles) == 0
                continue
            (expected,) = seen
            assert torch.equal(streamed.hidden(name, number).view_as(expected), expected), (name, number)
            compared += 1
        assert torch.equal(streamed.logits[number], logits)
    # Two samples have images: 2 vision layers and the projector; all three have 2 decoder layers.
    assert compared == 2 * 3 + 3 * 2


def test_nothing_stays_in_memory(streamed: Streamed) -> None:
    assert streamed.meta


def test_a_finished_step_leaves_no_input(
    weights: ModelWeights, samples: CalibrationSamples, tmp_path: Path
) -> None:
    stream = CalibrationStream(StreamedModel(weights, CPU), samples, tmp_path, StreamSettings())
    stream.observe(0)
    stream.observe(1)
    assert {path.name for path in tmp_path.iterdir()} == {"0001", "0002"}
    stream.finish(1)
    assert [path.name for path in tmp_path.iterdir()] == ["0002"]
    # The second sample is text alone, which the tower does not see.
    assert len(list((tmp_path / "0002").iterdir())) == 2


def test_a_step_can_be_repeated(weights: ModelWeights, samples: CalibrationSamples, tmp_path: Path) -> None:
    stream = CalibrationStream(StreamedModel(weights, CPU), samples, tmp_path, StreamSettings())
    stream.observe(0)
    first, again = (stream.observe(1)["vision.layers.0.mlp.fc1"] for _ in range(2))
    assert torch.equal(first.amax_CK, again.amax_CK)
    assert torch.equal(first.rows_RK(), again.rows_RK())


class TestObserver:
    GROUPS = (
        "vision.layers.1.attention.q_proj",
        "vision.layers.0.mlp.fc2",
        "projector.fc1",
        "language.layers.0.attention.q_proj",
        "language.layers.1.mlp.down_proj",
        "language.lm_head",
    )

    def inputs(self, whole: Nvlm, samples: CalibrationSamples, linear: str) -> list[Tensor]:
        """What a linear of the whole model sees of every sample, [rows, K]."""
        seen: list[Tensor] = []
        for sample in samples:
            before = len(seen)
            with hooked(whole.get_submodule(linear), lambda x, _y: seen.append(x.flatten(0, -2))):
                run_whole(whole, sample)
            if len(seen) == before:
                seen.append(torch.empty(0, 0))
        return seen

    @staticmethod
    def classes(linear: str, sample: CalibrationSample) -> list[int]:
        """Token class of every row, spelled out tile by tile."""
        if linear.startswith("language."):
            return [int(kind) for kind in sample.token_classes]
        rows: list[int] = []
        for tiles in sample.tiles_per_image:
            for tile in range(tiles):
                kind = TokenClass.THUMBNAIL if tiles > 1 and tile == tiles - 1 else TokenClass.VISUAL
                # A tile of 56 pixels has 16 patches and a class token; the projector merges four patches.
                rows += [kind] * (17 if linear.startswith("vision.") else 4)
        return rows

    @pytest.mark.parametrize("linear", GROUPS)
    def test_statistics_by_token_class(
        self, streamed: Streamed, whole: Nvlm, samples: CalibrationSamples, linear: str
    ) -> None:
        observed = streamed.seen[linear]
        inputs = self.inputs(whole, samples, linear)
        classes = [torch.tensor(self.classes(linear, sample)) for sample in samples]
        report = observed.by_class()
        for kind in TokenClass:
            mine = [x[c == kind] for x, c in zip(inputs, classes, strict=True) if (c == kind).any()]
            if not mine:
                assert kind.name.lower() not in report
                continue
            values = torch.cat(mine)
            assert torch.equal(observed.amax_CK[kind], values.abs().amax(0))
            stats = report[kind.name.lower()]
            assert stats["amax"] == float(values.abs().max())
            assert stats["rms"] == pytest.approx(float(values.double().square().mean().sqrt()), rel=1e-6)
            limits = [OUTLIER_FACTOR * x.double().square().mean().sqrt() for x in mine]
            outliers = sum(int((x.abs() > limit).sum()) for x, limit in zip(mine, limits, strict=True))
            assert stats["outliers"] == outliers / values.numel()
        everything = torch.cat([x for x in inputs if x.numel()])
        assert torch.equal(observed.amax_K, everything.abs().amax(0))

    def test_outliers_are_counted(self, streamed: Streamed) -> None:
        shares = [stats["outliers"] for seen in streamed.seen.values() for stats in seen.by_class().values()]
        assert max(shares) == 0 or max(shares) < 0.05
        observed = Observed.empty(64, CPU)
        x_RK = torch.ones(10, 64)
        x_RK[3, 7] = 1000.0
        observed.add(x_RK, torch.zeros(10, dtype=torch.int8), torch.tensor([], dtype=torch.int64))
        # One value is 25 times the root mean square, the others 0.025 times.
        assert observed.by_class()["text"]["outliers"] == 1 / 640

    @pytest.mark.parametrize("linear", GROUPS)
    def test_kept_rows_are_inputs_of_the_chosen_tokens(
        self, streamed: Streamed, whole: Nvlm, samples: CalibrationSamples, linear: str
    ) -> None:
        inputs = self.inputs(whole, samples, linear)
        classes = [torch.tensor(self.classes(linear, sample), dtype=torch.int8) for sample in samples]
        weights = {kind: float(kind != TokenClass.TAG) for kind in TokenClass}
        chosen = choose_rows([rows.numpy() for rows in classes], weights, 40, 5)
        expected = torch.cat([x[rows] for x, rows in zip(inputs, chosen, strict=True) if len(rows)])
        assert torch.equal(streamed.seen[linear].rows_RK(), expected)
        available = sum(int((rows != TokenClass.TAG).sum()) for rows in classes)
        assert len(expected) == min(40, available)

    def test_the_inputs_of_every_group_were_seen(self, streamed: Streamed, weights: ModelWeights) -> None:
        groups = all_groups(weights.reader.config)
        assert list(streamed.seen) == [group.linears[0] for group in groups]


def test_keys_and_values_are_measured_behind_the_rotation(
    streamed: Streamed, whole: Nvlm, samples: CalibrationSamples
) -> None:
    keys, values = [0.0, 0.0], [0.0, 0.0]
    for sample in samples:
        cache = KvCache()
        ids = torch.from_numpy(sample.input_ids).unsqueeze(0)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, torch.from_numpy(sample.visual_positions)] = True
        pixels = torch.from_numpy(normalize_tiles(sample.tiles)) if len(sample.tiles) else None
        with torch.no_grad():
            whole(ids, pixels, mask if pixels is not None else None, cache)
        for layer in range(2):
            keys[layer] = max(keys[layer], float(cache.keys[layer].abs().max()))
            values[layer] = max(values[layer], float(cache.values[layer].abs().max()))
    steps = [step for step in streamed.stream.steps if isinstance(step, DecoderLayerStep)]
    assert [step.kv_range.keys_amax for step in steps] == keys
    assert [step.kv_range.values_amax for step in steps] == values
