"""Build kits: what is written without a GPU, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nvlm_deploy.config.kit import KIT_NAME, BuildKit, check_files
from nvlm_deploy.config.target import load_target
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError, VerificationError
from nvlm_deploy.export.tensorrt_llm import load_tensorrt_llm_model
from nvlm_deploy.models import load_model
from nvlm_deploy.pipeline.kit import KitOptions, missing_for, write_kit
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine
from nvlm_deploy.planner import Parallel
from nvlm_deploy.verify.probes import ProbeSet

ONE = Parallel()


def write(
    checkpoint: Path,
    output: Path,
    target: str,
    *changes: str,
    parallel: Parallel = ONE,
    reference: Path | None = None,
) -> BuildKit:
    plan = plan_engine(BuildRequest(checkpoint, "fp16", target, output, changes, parallel=parallel))
    return write_kit(plan, KitOptions(reference)).kit


def test_what_is_in_a_kit(kit_directory: Path, tiny_checkpoint: Path) -> None:
    kit = BuildKit.read(kit_directory)
    check_files(kit_directory, kit.files)
    names = {entry.path for entry in kit.files}
    assert {"config.json", "tokenizer.json", "README.md", "vision/vision.onnx", "llm/config.json"} <= names
    assert {"llm/rank0.safetensors", "llm/rank1.safetensors", "probes/probes.json"} <= names
    on_disk = {
        path.relative_to(kit_directory).as_posix() for path in kit_directory.rglob("*") if path.is_file()
    }
    assert on_disk == names | {KIT_NAME}
    assert kit.bundle.backend == "tensorrt_llm"
    assert kit.bundle.target["name"] == "h100-80gb"
    assert kit.bundle.results["plan"]["fits"] is True
    assert kit.bundle.results["plan"]["tp"] == 2
    assert str(tiny_checkpoint) not in (kit_directory / KIT_NAME).read_text()


def test_the_vision_graph_has_the_opset_of_the_target(kit_directory: Path) -> None:
    kit = BuildKit.read(kit_directory)
    model = onnx.load(kit_directory / "vision/vision.onnx", load_external_data=False)
    part = kit.part("vision")
    assert model.opset_import[0].version == kit.bundle.target["onnx_opset"]["tensorrt"]
    assert part.section["plan"]["opset"] == model.opset_import[0].version
    assert part.job["graph"] == part.source == "vision/vision.onnx"
    (profile,) = part.job["profiles"]
    most = kit.bundle.tiler.max_tiles + 1
    assert [shape[0] for shape in profile["tiles"]] == [
        1,
        most,
        most * kit.bundle.target["limits"]["max_batch"],
    ]


def test_the_language_model_reads_back(kit_directory: Path, tiny_checkpoint: Path) -> None:
    read_back = load_tensorrt_llm_model(kit_directory / "llm")
    original = load_model(tiny_checkpoint).language
    ids = torch.arange(10)[None]
    with torch.no_grad():
        ours, theirs = (m.logits(m(m.embed_tokens(ids))) for m in (read_back, original))
    assert torch.allclose(ours, theirs, atol=0.05 * float(theirs.abs().max()))


def test_probes_are_of_the_released_checkpoint(kit_directory: Path) -> None:
    probes = ProbeSet.read(kit_directory / "probes")
    assert probes.reference == "the released checkpoint in FP32"
    stored = np.load(kit_directory / "probes" / str(probes.probes[1].visual_tokens))
    assert stored.dtype == np.float16


def test_the_page_names_the_one_command(kit_directory: Path) -> None:
    page = (kit_directory / "README.md").read_text()
    assert "nvlm-build compile KIT -o BUNDLE" in page
    assert "mpirun -n 2 nvlm-build run BUNDLE" in page
    assert "docs/targets/datacenter.md" in page
    assert "compute capability 9.0" in page


def test_a_second_run_writes_the_same_kit(kit_directory: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    again = write(
        tiny_checkpoint, tmp_path / "kit", "h100-80gb", parallel=Parallel(tp=2), reference=tiny_checkpoint
    )
    assert again.digest == BuildKit.read(kit_directory).digest


def test_a_kit_for_tensorrt_has_both_graphs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    kit = write(tiny_checkpoint, tmp_path / "kit", "jetson-agx-orin-64gb", "backend=tensorrt")
    assert [(part.part, part.maker) for part in kit.parts] == [("vision", "tensorrt"), ("llm", "tensorrt")]
    assert not kit.probes
    assert (tmp_path / "kit/llm/decoder.onnx").is_file()
    assert "jetson-orin.md" in (tmp_path / "kit/README.md").read_text()


def test_ranks_are_for_tensorrt_llm(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one device"):
        write(
            tiny_checkpoint,
            tmp_path / "kit",
            "jetson-agx-orin-64gb",
            "backend=tensorrt",
            parallel=Parallel(tp=2),
        )
    with pytest.raises((UsageError, UnsuitableError), match="4 "):
        write(tiny_checkpoint, tmp_path / "kit", "h100-80gb", parallel=Parallel(tp=3))
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_does_not_fit_is_refused_first(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsuitableError, match="GiB"):
        write(tiny_checkpoint, tmp_path / "kit", "h100-80gb", "target.memory.usable_gib=0.01")
    assert list(tmp_path.iterdir()) == []


def test_changed_kits_are_refused(kit_directory: Path, tmp_path: Path) -> None:
    raw = json.loads((kit_directory / KIT_NAME).read_text())
    raw["bundle"]["context"] = 1
    (tmp_path / KIT_NAME).write_text(json.dumps(raw))
    with pytest.raises(VerificationError, match="digest does not hold"):
        BuildKit.read(tmp_path)
    (tmp_path / KIT_NAME).write_text(json.dumps({**raw, "format_version": 99}))
    with pytest.raises(NvlmError, match="another version"):
        BuildKit.read(tmp_path)
    with pytest.raises(NvlmError, match="no build kit"):
        BuildKit.read(tmp_path / "nowhere")


def test_changed_files_are_named(kit_directory: Path, tmp_path: Path) -> None:
    kit = BuildKit.read(kit_directory)
    entry = next(entry for entry in kit.files if entry.path == "config.json")
    with pytest.raises(VerificationError, match=r"config\.json is missing"):
        check_files(tmp_path, [entry])
    text = (kit_directory / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(text[:-2] + b" }")
    check_files(tmp_path, [entry], digests=False)
    with pytest.raises(VerificationError, match=r"config\.json has changed"):
        check_files(tmp_path, [entry])


def test_engines_for_cpus_need_no_device() -> None:
    assert missing_for(load_target("cpu-x86")) == []
    assert missing_for(load_target("l40s-48gb", ["backend=tensorrt_rtx"])) == []
