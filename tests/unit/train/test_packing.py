"""A packed sequence gives every sample the loss and the gradients that it has alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nvlm_deploy.calibration.jsonl import JsonlConversations
from nvlm_deploy.config.training import DataSection
from nvlm_deploy.models import Nvlm, load_model
from nvlm_deploy.models.decoder import DecoderLayer
from nvlm_deploy.models.vision import VisionLayer
from nvlm_deploy.preprocess import PromptBuilder
from nvlm_deploy.train.data.batch import TrainBatch, collate
from nvlm_deploy.train.data.sample import TrainSample, build_train_sample
from nvlm_deploy.train.objective import AnswerObjective


@pytest.fixture(scope="module")
def samples(builders: dict[str, PromptBuilder], lines: Path) -> dict[str, list[TrainSample]]:
    conversations = JsonlConversations(lines)
    data = DataSection(max_length=512)
    return {
        variant: [build_train_sample(conversations[i], builder, data, source=i % 2) for i in range(6)]
        for variant, builder in builders.items()
    }


def loss_and_gradients(model: Nvlm, batch: TrainBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    sums = AnswerObjective(model, 2)(batch)
    sums.total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return torch.stack([*sums.by_source_S, *sums.tokens_S]), gradients


@pytest.mark.parametrize("variant", "DXH")
def test_packed_equals_unpacked(
    checkpoints: dict[str, Path], samples: dict[str, list[TrainSample]], variant: str
) -> None:
    model, some = load_model(checkpoints[variant]), samples[variant]
    alone, gradients_alone = loss_and_gradients(model, collate([[s] for s in some], model.config))
    rows = [some[:4], some[4:]]
    packed, gradients = loss_and_gradients(model, collate(rows, model.config))
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == gradients_alone.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(value, gradients_alone[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("variant", "DXH")
def test_a_sample_does_not_see_its_neighbours(
    checkpoints: dict[str, Path], samples: dict[str, list[TrainSample]], variant: str
) -> None:
    model, some = load_model(checkpoints[variant]), samples[variant]
    # One neighbour for another of equal length: the third sample's losses stay what they are.
    assert len(some[1]) == len(some[5])
    targets = []
    with torch.no_grad():
        for neighbour in (some[1], some[5]):
            batch = collate([[neighbour, some[2]]], model.config)
            visual = model.encode_tiles(batch.pixels_N3SS)
            hidden = model.hidden_states(
                batch.ids_BT, visual, batch.visual_mask_BT, tiles=batch.tiles, packing=batch.packing
            )
            targets.append(hidden[0, len(neighbour) :])
    torch.testing.assert_close(targets[0], targets[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", "DXH")
def test_text_alone_leaves_gradients_on_the_same_parameters(
    checkpoints: dict[str, Path], samples: dict[str, list[TrainSample]], variant: str
) -> None:
    model, some = load_model(checkpoints[variant]), samples[variant]
    assert not len(some[0].tiles)
    _, text = loss_and_gradients(model, collate([[some[0]]], model.config))
    _, images = loss_and_gradients(model, collate([[some[2]]], model.config))
    assert text.keys() == images.keys()
    assert not any(value.isnan().any() for value in text.values())
    assert all(not value.any() for name, value in text.items() if name.startswith("projector"))


@pytest.mark.parametrize("variant", "DXH")
def test_recomputing_changes_nothing(
    checkpoints: dict[str, Path], samples: dict[str, list[TrainSample]], variant: str
) -> None:
    model, some = load_model(checkpoints[variant]), samples[variant]
    batch = collate([some[:3]], model.config)
    loss, gradients = loss_and_gradients(model, batch)
    for layer in (*model.vision.layers, *model.language.layers):
        assert isinstance(layer, (DecoderLayer, VisionLayer))
        layer.recompute = True
    model.zero_grad()
    sums = AnswerObjective(model, 2, recompute=True)(batch)
    sums.total.backward()
    assert torch.equal(torch.stack([*sums.by_source_S, *sums.tokens_S]), loss)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-6, atol=1e-7)
