"""Building engines: what is written, what is said about it, and what is refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from nvlm_deploy.backends import SessionOptions, open_vision_session
from nvlm_deploy.backends.onnxruntime.build import EngineSettings, build_engine, check
from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.errors import NvlmError, UnsuitableError
from nvlm_deploy.models import Nvlm

from .conftest import CONTEXT, Build, plan_for

INT4 = {"format": "int4", "group_size": 32, "activations": "int8"}


def test_the_sections_describe_the_graphs(tmp_path: Path, weights: ModelWeights) -> None:
    plan = plan_for(weights, INT4)
    config = weights.reader.config
    sections = build_engine(weights, config, plan, EngineSettings(CONTEXT), tmp_path)
    for section in (sections["vision"], sections["llm"]):
        assert (tmp_path / section["data"]).is_file()
        session = ort.InferenceSession(str(tmp_path / section["model"]), providers=["CPUExecutionProvider"])
        actual = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
        for name, value in {**section["inputs"], **section["outputs"]}.items():
            assert actual.pop(name) == value["shape"]
        cache = section.get("kv_cache")
        if cache:
            names = [
                n.format(layer=i) for n in cache["past"] + cache["present"] for i in range(cache["layers"])
            ]
            assert {name: actual.pop(name) for name in names} == dict.fromkeys(names, cache["shape"])
        assert actual == {}
    assert sections["llm"]["inputs"]["input_ids"] == {"dtype": "int64", "shape": ["batch", "sequence"]}
    assert sections["llm"]["context_length"] == CONTEXT
    assert sections["vision"]["visual_tokens_per_tile"] == config.visual_tokens_per_tile


def test_the_plan_knows_the_sizes(tmp_path: Path, weights: ModelWeights) -> None:
    for form in (INT4, {"format": "fp16"}, {"format": "int8", "group_size": 64, "symmetric": False}):
        plan = plan_for(weights, form)
        output = tmp_path / str(form["format"])
        build_engine(weights, weights.reader.config, plan, EngineSettings(CONTEXT), output)
        written = sum(path.stat().st_size for path in output.rglob("*.onnx*"))
        planned = sum(part.after for part in plan.sizes())
        # Graphs, the rotary tables, and gaps between tensors.
        assert planned < written < planned + 300_000


def test_tied_weights_are_stored_once(tmp_path: Path, weights: ModelWeights) -> None:
    # What an embedding would be multiplied with means nothing, and is no reason to store it twice.
    plan = plan_for(weights, INT4, {"embedding": {"format": "int4", "group_size": 32}})
    head = "language.lm_head.weight"
    tied = replace(
        plan,
        tensors={**plan.tensors, head: replace(plan.tensors[head], source="language.embed_tokens.weight")},
    )
    sizes = {}
    for name, chosen in (("untied", plan), ("tied", tied)):
        build_engine(weights, weights.reader.config, chosen, EngineSettings(CONTEXT), tmp_path / name)
        sizes[name] = (tmp_path / name / "llm/decoder.onnx.data").stat().st_size
    saved = sizes["untied"] - sizes["tied"]
    assert tied.shares_embedding
    assert abs(saved - plan.stored_bytes(head)) < 8192


def test_progress_tells_part_and_bytes(tmp_path: Path, weights: ModelWeights) -> None:
    calls: list[tuple[str, str, int, int]] = []
    plan = plan_for(weights, INT4)
    build_engine(
        weights, weights.reader.config, plan, EngineSettings(CONTEXT), tmp_path, lambda *c: calls.append(c)
    )
    assert list(dict.fromkeys(call[0] for call in calls)) == ["vision", "llm"]
    assert all(done <= total for _, _, done, total in calls)


def test_what_cannot_run_is_refused_before_any_work(weights: ModelWeights) -> None:
    plan = plan_for(weights, INT4)
    config = weights.reader.config
    with pytest.raises(UnsuitableError, match="kv_cache is fp16") as caught:
        check(config, replace(plan, kv_cache="fp16"), EngineSettings(CONTEXT))
    assert caught.value.hint == "use --set kv_cache=fp32"
    with pytest.raises(UnsuitableError, match="a context of 513 tokens"):
        check(config, plan, EngineSettings(513))


def test_tiles_become_the_models_visual_tokens(build: Build, model: Nvlm) -> None:
    import torch

    from nvlm_deploy.preprocess import normalize_tiles

    path = build(format="fp32") / "vision/vision.onnx"
    session = open_vision_session("onnxruntime", path, SessionOptions(threads=1))
    side = model.config.tile_size
    tiles = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model.encode_tiles(torch.from_numpy(normalize_tiles(tiles))).numpy()
    tokens = session.encode(tiles)
    assert tokens.shape == expected.shape
    assert np.linalg.norm(tokens - expected) < 1e-5 * np.linalg.norm(expected)
    with pytest.raises(NvlmError, match="tiles must be uint8"):
        session.encode(tiles[:, 1:])
    with pytest.raises(NvlmError, match="not float32"):
        session.encode(tiles.astype(np.float32))
