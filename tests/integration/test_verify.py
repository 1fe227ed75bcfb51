"""The gate passes healthy engines of the example, and catches faults that are planted in them.

Faults are planted in a bundle's files with the manifest's digests made right again, or in the runtime's
functions, so that figures have to find them and not checksums.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import nvlm_deploy.pipeline.verify as stage
from nvlm_deploy import Engine
from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.cli.main import run
from nvlm_deploy.config.manifest import EngineManifest, collect_files
from nvlm_deploy.errors import UsageError, VerificationError
from nvlm_deploy.pipeline.verify import VerifyOptions, verify_bundle
from nvlm_deploy.preprocess import preprocess_images
from nvlm_deploy.preprocess.assembly import Assembly
from nvlm_deploy.verify.checks import Check
from nvlm_deploy.verify.measure import PromptSet
from nvlm_deploy.verify.walk import WalkResult

EXAMPLE = Path(__file__).parents[2] / "examples" / "nvlm-d-tiny"
FEW = VerifyOptions(samples=5)

Fault = Callable[[Path], None]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Engines of the example by recipe; not to be changed."""
    built: dict[str, Path] = {}

    def make(recipe: str) -> Path:
        if recipe not in built:
            built[recipe] = tmp_path_factory.mktemp(recipe) / "bundle"
            names = ["--recipe", recipe, "--target", "cpu-x86", "-o", str(built[recipe])]
            assert run(["engine", str(EXAMPLE), *names, "--no-verify"]) == 0
        return built[recipe]

    return make


@pytest.fixture(scope="module", autouse=True)
def one_reference() -> Iterator[None]:
    """All engines here are of one checkpoint and see the same prompts, so its figures are computed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_reference", _Once(stage._reference))
        yield


class _Once:
    """A function's first result, for the number of prompts that it is asked about."""

    def __init__(self, function: Callable[..., WalkResult]) -> None:
        self.function = function
        self.results: dict[int, WalkResult] = {}

    def __call__(self, weights: ModelWeights, prompts: PromptSet, *more: Any) -> WalkResult:
        count = len(prompts.all)
        if count not in self.results:
            self.results[count] = self.function(weights, prompts, *more)
        return self.results[count]


@pytest.fixture
def bundle(healthy: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the INT8 engine, to be broken."""
    return Path(shutil.copytree(healthy("int8"), tmp_path / "bundle"))


def plant(bundle: Path, fault: Fault) -> None:
    """Break a bundle and make its digests right again."""
    manifest = EngineManifest.read(bundle)
    fault(bundle)
    replace(manifest, files=collect_files(bundle)).write(bundle)


def failures(bundle: Path) -> dict[str, Check]:
    """The checks that a bundle fails, by name."""
    report = verify_bundle(bundle, EXAMPLE, FEW)
    failed = {check.name: check for check in report.failed}
    assert report.passed == (not failed)
    return failed


def weights_of(graph: Path, name: str) -> npt.NDArray[Any]:
    """An initializer's place in the data file, to be written to."""
    model = onnx.load(str(graph), load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.name == name)
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    offset, shape = int(where["offset"]), tuple(tensor.dims)
    return np.memmap(graph.with_name(where["location"]), dtype, "r+", offset, shape)


def transpose_scales(bundle: Path) -> None:
    """Store one matrix's scales [rows, groups] as [groups, rows]."""
    name = "language.layers.2.mlp.down_proj.lowered.blocks.scales"
    scales = weights_of(bundle / "llm" / "decoder.onnx", name)
    scales[...] = np.ascontiguousarray(scales.T).reshape(scales.shape)


def swap_gate_and_up(bundle: Path) -> None:
    """Let gate and up of one layer compute with each other's weights."""
    graph = bundle / "llm" / "decoder.onnx"
    for suffix in ("", ".scales"):
        gate, up = (
            weights_of(graph, f"language.layers.3.mlp.{kind}_proj.lowered.blocks{suffix}")
            for kind in ("gate", "up")
        )
        gate[...], up[...] = up.copy(), gate.copy()


def swap_layers(bundle: Path) -> None:
    """Exchange the first matrix of the MLP between two layers of the tower."""
    graph = bundle / "vision" / "vision.onnx"
    for suffix in ("", ".scales"):
        first, second = (
            weights_of(graph, f"vision.layers.{layer}.mlp.fc1.lowered.blocks{suffix}") for layer in (1, 3)
        )
        first[...], second[...] = second.copy(), first.copy()


def overflow_fp16(bundle: Path) -> None:
    """Send what one MLP of the tower computes through FP16, with a channel that is too large for it."""
    path = bundle / "vision" / "vision.onnx"
    model = onnx.load(str(path), load_external_data=False)
    nodes = model.graph.node
    number, reader = next(
        (i, node) for i, node in enumerate(nodes) if node.name == "vision.layers.1.layer_scale2.scaled/Mul"
    )
    large = np.ones(128, np.float32)
    large[17] = 1e8
    model.graph.initializer.append(onnx.numpy_helper.from_array(large, "large"))
    through = [
        onnx.helper.make_node("Mul", [reader.input[0], "large"], ["large.x"]),
        onnx.helper.make_node("Cast", ["large.x"], ["large.fp16"], to=onnx.TensorProto.FLOAT16),
        onnx.helper.make_node("Cast", ["large.fp16"], ["large.fp32"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Div", ["large.fp32", "large"], ["large.y"]),
    ]
    reader.input[0] = "large.y"
    for offset, node in enumerate(through):
        nodes.insert(number + offset, node)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("recipe", ["int8", "int4-rtn"])
def test_a_healthy_engine_passes(recipe: str, healthy: Callable[[str], Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(healthy(recipe), tmp_path / "bundle"))
    assert failures(copy) == {}
    assert EngineManifest.read(copy).results["verify"]["passed"] is True
    assert Engine.open(copy, require_verified=True).generate("Hello", max_new_tokens=1).output_ids


@pytest.mark.parametrize(
    ("fault", "matrix", "check", "place"),
    [
        (
            transpose_scales,
            "language.layers.2.mlp.down_proj.weight",
            "decoder, cosine of a branch",
            "language.layers.2.mlp",
        ),
        (
            swap_gate_and_up,
            "language.layers.3.mlp.gate_proj.weight, language.layers.3.mlp.up_proj.weight",
            "decoder, cosine of a branch",
            "language.layers.3.mlp",
        ),
        (
            swap_layers,
            "vision.layers.1.mlp.fc1.weight, vision.layers.3.mlp.fc1.weight",
            "tower, cosine of a branch",
            "vision.layers.1.mlp",
        ),
        (overflow_fp16, None, "tower, cosine of the stream", "vision.layers.1.mlp"),
    ],
)
def test_a_fault_in_the_weights_is_found_in_its_place(
    fault: Fault, matrix: str | None, check: str, place: str, bundle: Path
) -> None:
    plant(bundle, fault)
    failed = failures(bundle)
    assert failed[check].place == place
    of_layers = {each.place for each in failed.values() if each.group == "layers"} - {"projector"}
    # The other part of the model has been fed the reference's own numbers, and is not accused.
    assert {name.split(".")[0] for name in of_layers} == {place.split(".")[0]}
    of_weights = [each.place for each in failed.values() if each.group == "weights"]
    assert of_weights == ([] if matrix is None else [matrix])
    with pytest.raises(VerificationError, match="has not passed verification"):
        Engine.open(bundle, require_verified=True)


def test_transposed_scales_are_found_among_the_errors_of_int4(
    healthy: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(healthy("int4-rtn"), tmp_path / "bundle"))
    plant(bundle, transpose_scales)
    (check,) = failures(bundle).values()
    assert (check.name, check.place) == (
        "decoder, error of a matrix",
        "language.layers.2.mlp.down_proj.weight",
    )


def test_an_overflow_is_named_as_such(bundle: Path) -> None:
    plant(bundle, overflow_fp16)
    failed = failures(bundle)
    assert failed["tower, cosine of the stream"].note == "numbers that are not finite"
    assert failed["image prompts, KL"].figure == float("inf")
    assert "text prompts, KL" not in failed


def test_shifted_tags_are_found(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(self: Any, tiles: int) -> None:
        self.add_text("<Image>")
        for tag in [f"<tile_{k + 1}>" for k in range(1, tiles)] + [self._thumbnail_tag]:
            self.add_text(tag)
            self._encode_pending()
            start = len(self._ids)
            self._visual_positions.extend(range(start, start + self._tokens_per_tile))
            self._ids.extend([self._tokenizer.image_token_id] * self._tokens_per_tile)
        self.add_text("</Image>")

    monkeypatch.setattr(Assembly, "add_image", shifted)
    (check,) = (each for each in failures(bundle).values() if each.group == "contract")
    assert check.name == "prompt ids, inputs that differ"
    assert "<tile_2>" in check.note.split("must begin")[0]
    assert "<tile_1>" in check.note.split("must begin")[1]


def test_a_thumbnail_that_is_first_is_found(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def thumbnail_first(*arguments: Any) -> list[Any]:
        return [
            replace(image, tiles=np.roll(image.tiles, 1, axis=0)) for image in preprocess_images(*arguments)
        ]

    monkeypatch.setattr("nvlm_deploy.runtime.prepare.preprocess_images", thumbnail_first)
    failed = failures(bundle)
    assert "the thumbnail is tile 1 of" in failed["tiles, inputs that differ"].note
    assert "and must be the last" in failed["tiles, inputs that differ"].note


def test_another_checkpoint_is_refused(bundle: Path, tiny_checkpoint: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="was not made from") as caught:
        verify_bundle(bundle, tiny_checkpoint, FEW)
    assert caught.value.hint is not None
    assert (bundle / "manifest.json").read_bytes() == before


def test_the_command_line_fails_with_4_and_writes_what_it_found(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = EngineManifest.read(bundle).files
    arguments = ["verify", str(bundle), "--against", str(EXAMPLE), "--samples", "5", "--json"]
    page = tmp_path / "report.html"
    assert run([*arguments, "--report", str(page)]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert EngineManifest.read(bundle).files == digests
    plant(bundle, swap_gate_and_up)
    assert run([*arguments, "--report", str(page)]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["passed"] is False
    assert "decoder, cosine of a branch at language.layers.3.mlp is" in err
    assert "failed" in page.read_text(encoding="utf-8")
    asked = ["run", str(bundle), "--prompt", "Hello", "--require-verified", "--max-new-tokens", "1"]
    assert run(asked) == 4
    assert "has not passed verification" in capsys.readouterr().err
