"""The schema of targets: backends, overrides, and a source for every number."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nvlm_deploy.config.catalog import list_names
from nvlm_deploy.config.target import GIB, load_target, split_target_overrides
from nvlm_deploy.errors import NvlmError, UsageError


def device(tmp_path: Path, **keys: object) -> str:
    path = tmp_path / "device.yaml"
    path.write_text(yaml.safe_dump({"extends": "h100-80gb", "name": "device", **keys}))
    return str(path)


@pytest.mark.parametrize("name", list_names("target"))
def test_shipped_figures_are_plausible(name: str) -> None:
    target = load_target(name)
    assert target.backend == target.backends[0]
    assert set(target.backends) <= set(target.precisions)
    if not target.gpu:
        assert (target.usable_bytes, target.bandwidth_gb_s, target.tflops) == (None, None, {})
        return
    total, usable = target.memory.total_gib, target.memory.usable_gib
    assert total is not None
    assert usable is not None
    assert 0.75 < usable / total < 1
    rates = target.tflops
    assert rates["fp16"] == rates["bf16"]
    # Dense rates double when the width is halved; GeForce halves FP8 by its FP32 accumulation, not INT8.
    assert rates["int8"] / rates["fp16"] == pytest.approx(
        4 if name.startswith("rtx-4090") else 2, rel=0.02
    ) or (name == "rtx-5090-32gb")


def test_a_backend_is_chosen_and_only_one_that_is_offered() -> None:
    assert load_target("l40s-48gb", ["backend=tensorrt_rtx"]).backend == "tensorrt_rtx"
    with pytest.raises(
        UsageError, match="engines for h100-80gb are made by tensorrt_llm or tensorrt"
    ) as caught:
        load_target("h100-80gb", ["backend=tensorrt_rtx"])
    assert caught.value.message.startswith("--set backend=tensorrt_rtx")


def test_overrides_of_the_target_are_told_from_others() -> None:
    texts = ["backend=tensorrt_rtx", "target.max_context=512", "weights.vision.format=fp16"]
    assert split_target_overrides(texts) == (["backend=tensorrt_rtx", "max_context=512"], texts[2:])


def test_a_figure_that_a_user_sets_says_so() -> None:
    target = load_target("cpu-x86", ["memory.usable_gib=16", "bandwidth_gb_s=50"])
    assert target.usable_bytes == 16 * GIB
    assert target.sources["bandwidth_gb_s"] == target.sources["memory.usable_gib"] == "set by the user"
    assert "set by the user" not in load_target("cpu-x86").sources.values()


@pytest.mark.parametrize("name", ["cpu-x86", "jetson-agx-orin-64gb", "l40s-48gb"])
def test_every_section_of_numbers_has_a_source(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    for key in target.sources:
        shown = target.model_dump(exclude_none=True)
        keys = {**shown, "sources": {k: v for k, v in target.sources.items() if k != key}}
        section = shown.get(key.split(".")[0])
        if section is None or section == {}:
            continue  # a figure that this target leaves to the user
        path = tmp_path / "bare.yaml"
        path.write_text(yaml.safe_dump(keys))
        with pytest.raises(NvlmError, match=f"{key}.* has no source: add sources"):
            load_target(str(path))


def test_a_new_number_needs_a_source(tmp_path: Path) -> None:
    with pytest.raises(NvlmError, match=r"device\.yaml: sources names colour, which is no key of a target"):
        load_target(device(tmp_path, sources={"colour": "green"}))
    with pytest.raises(NvlmError, match="precisions has no entry for the backend tensorrt_rtx"):
        load_target(device(tmp_path, backends=["tensorrt_llm", "tensorrt_rtx"]))
    with pytest.raises(NvlmError, match="bandwidth_gb_s has no source"):
        load_target(device(tmp_path, sources={"bandwidth_gb_s": " "}))
