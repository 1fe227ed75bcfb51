"""Bad input to `nvlm-build quantize`: a clear sentence before any work, the right exit code, nothing left."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from nvlm_deploy.cli.main import run
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.pipeline.quantize import quantize_checkpoint
from nvlm_deploy.pipeline.quantize_plan import QuantizeRequest, plan_quantize
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint

FAILURE, USAGE, UNSUITABLE = 1, 2, 3

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Quantizes with options that must be refused, leaving nothing; returns what stderr says."""

    def check(checkpoint: Path, recipe: str, *more: str, code: int = FAILURE) -> str:
        place = tmp_path / "place"
        place.mkdir()
        arguments = ["quantize", str(checkpoint), "--recipe", recipe, "-o", str(place / "out"), *more]
        assert run(arguments) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        assert list(place.iterdir()) == []
        return captured.err

    return check


@pytest.fixture
def write_set(tmp_path: Path) -> Callable[..., Path]:
    """Writes a calibration set of one source."""

    def write(**source: str) -> Path:
        spec = {
            "name": "mine",
            "description": "of a test",
            "licence": "CC0-1.0",
            "source": source,
            "count": 8,
            "seed": 0,
            "max_tokens": 512,
        }
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    return write


class TestRecipe:
    @pytest.mark.parametrize("section", ["keep", "never"])
    def test_a_rule_that_matches_nothing(self, tiny_checkpoint: Path, refused: Refused, section: str) -> None:
        rule = f"{section}=[{{match: 'language.layers.*.mlp.dwon_proj.weight', reason: fragile}}]"
        text = refused(tiny_checkpoint, "fp8", "--set", rule)
        assert f"the {section} pattern 'language.layers.*.mlp.dwon_proj.weight' matches no" in text
        assert "hint: " in text

    def test_a_recipe_that_quantizes_what_it_says_never_to(
        self, tiny_checkpoint: Path, refused: Refused
    ) -> None:
        rule = "never=[{match: 'language.layers.0.*', reason: the first layer is fragile}]"
        text = refused(tiny_checkpoint, "fp8", "--set", rule)
        assert "quantizes language.layers.0.attention.q_proj.weight" in text
        assert "the first layer is fragile" in text

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("weights.language.grup_size=64", "the key 'weights.language.grup_size' is not known"),
            ("weights.language.activations=int3", "weights.language.activations"),
            ("calibration.cuont=3", "the key 'cuont' is not known"),
            ("calibration.count=0", "count"),
        ],
    )
    def test_a_key_or_value_that_is_wrong(
        self, tiny_checkpoint: Path, refused: Refused, change: str, message: str
    ) -> None:
        assert message in refused(tiny_checkpoint, "fp8", "--set", change, code=USAGE)

    def test_an_unknown_recipe(self, tiny_checkpoint: Path, refused: Refused) -> None:
        text = refused(tiny_checkpoint, "int4-aqw", code=USAGE)
        assert "there is no recipe 'int4-aqw'" in text
        assert "int4-awq" in text

    def test_a_recipe_that_engines_round_themselves(self, tiny_checkpoint: Path, refused: Refused) -> None:
        text = refused(tiny_checkpoint, "int4-rtn", code=USAGE)
        assert "has no quantized checkpoint" in text
        assert f"hint: nvlm-build engine {tiny_checkpoint} --recipe int4-rtn" in text


class TestModel:
    def test_groups_that_do_not_divide(self, tiny_checkpoint: Path, refused: Refused) -> None:
        text = refused(tiny_checkpoint, "int4-awq", code=UNSUITABLE)
        assert "language.layers.0.attention.q_proj.weight has 64 inputs, which groups of 128" in text
        assert "hint: --set weights.language.group_size=64" in text

    def test_groups_that_do_not_divide_the_dummy_heads(self, tiny_checkpoint: Path, refused: Refused) -> None:
        parts = ("language", "vision", "projector")
        small = [text for part in parts for text in ("--set", f"weights.{part}.group_size=32")]
        text = refused(tiny_checkpoint, "int4-awq-vit-int4wo", *small, code=UNSUITABLE)
        assert "vision_model.encoder.layers.0.attn.proj.weight has 144 inputs with its dummy heads" in text
        assert "hint: use smaller groups" in text

    def test_a_part_of_the_towers_fused_weight(self, tiny_checkpoint: Path, refused: Refused) -> None:
        rule = "keep=[{match: 'vision.layers.0.attention.q_proj.weight', reason: fragile}]"
        text = refused(tiny_checkpoint, "fp8-vit-fp8", "--set", rule)
        assert "one tensor in the checkpoint" in text
        assert "vision.layers.0.attention.k_proj.weight" in text

    def test_a_head_that_is_tied_to_the_embedding(
        self, tiny_checkpoint: Path, tmp_path: Path, refused: Refused
    ) -> None:
        raw = json.loads((tiny_checkpoint / "config.json").read_text())
        raw["llm_config"]["tie_word_embeddings"] = True
        write_random_checkpoint(raw, tmp_path / "tied")
        text = refused(tmp_path / "tied", "fp8", "--set", "weights.lm_head.format=fp8", code=UNSUITABLE)
        assert "quantizes lm_head, which this model ties to its embedding" in text
        assert "--set weights.lm_head.format=fp16" in text

    def test_a_checkpoint_that_is_quantized_already(
        self, tiny_checkpoint: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = tmp_path / "first"
        assert run(["quantize", str(tiny_checkpoint), "--recipe", "int8-wo", "-o", str(first)]) == 0
        capsys.readouterr()
        text = refused(first, "fp8", code=USAGE)
        assert f"{first} is quantized already" in text
        assert "hint: start from the released checkpoint" in text


class TestDevice:
    @pytest.mark.parametrize(("sm", "recipe"), [(87, "fp8"), (90, "nvfp4")])
    def test_a_target_without_the_arithmetic(
        self, tiny_checkpoint: Path, tmp_path: Path, refused: Refused, sm: int, recipe: str
    ) -> None:
        target = tmp_path / "device.yaml"
        keys = {"extends": "jetson-agx-orin-64gb", "name": "device", "sm": sm}
        target.write_text(yaml.safe_dump(keys))
        text = refused(tiny_checkpoint, recipe, "--target", str(target), code=UNSUITABLE)
        needed = {"fp8": "8.9", "nvfp4": "10.0"}[recipe]
        assert f"recipe {recipe} needs a GPU of compute capability {needed}, and device has" in text
        assert f"device has {sm // 10}.{sm % 10}" in text
        assert "int8-sq" in text

    @pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu"])
    def test_a_device_that_is_not_there(self, tiny_checkpoint: Path, refused: Refused, device: str) -> None:
        if device == "cuda" and torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
        text = refused(tiny_checkpoint, "fp8", "--device", device, code=UNSUITABLE)
        assert f"there is no device '{device}' on this machine" in text
        assert "hint: use --device cpu" in text


class TestCalibrationSet:
    def test_a_broken_image(
        self, tiny_checkpoint: Path, tmp_path: Path, refused: Refused, write_set: Callable[..., Path]
    ) -> None:
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        for name in ("a", "b", "c"):
            Image.new("RGB", (60, 60)).save(pictures / f"{name}.png")
        whole = (pictures / "b.png").read_bytes()
        (pictures / "b.png").write_bytes(whole[: len(whole) // 2])
        spec = write_set(kind="folder", path="pictures", prompt="What is it?")
        text = refused(tiny_checkpoint, "fp8", "--calibration", str(spec))
        assert str(pictures / "b.png") in text

    def test_a_missing_image(
        self, tiny_checkpoint: Path, tmp_path: Path, refused: Refused, write_set: Callable[..., Path]
    ) -> None:
        line = {"image": "gone.png", "question": "What?", "answer": "Nothing."}
        (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n")
        spec = write_set(kind="jsonl", path="lines.jsonl")
        text = refused(tiny_checkpoint, "fp8", "--calibration", str(spec))
        assert "gone.png does not exist" in text

    def test_a_set_without_images_for_a_recipe_that_calibrates_the_tower(
        self, tiny_checkpoint: Path, refused: Refused
    ) -> None:
        small = ["--set", "calibration.count=2"]
        text = refused(tiny_checkpoint, "fp8-vit-fp8", "--calibration", "documents-text", *small)
        assert "calibrates the vision tower, and the calibration set 'documents-text' has no image" in text
        assert "hint: use a set with images" in text

    def test_class_weights_that_leave_a_layer_nothing_to_search_with(
        self, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changes = ["weights.language.group_size=32", "calibration.count=2"]
        changes += [f"calibration.class_weights.{kind}=0" for kind in ("text", "tag", "visual")]
        arguments = [text for change in changes for text in ("--set", change)]
        source = ["--calibration", "documents-text"]
        output = tmp_path / "out"
        command = ["quantize", str(tiny_checkpoint), "--recipe", "int4-awq", *source, "-o", str(output)]
        assert run([*command, *arguments]) == FAILURE
        assert "sees no token that counts" in capsys.readouterr().err
        assert not output.exists()


class TestDisk:
    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 20 MB of its own."""
        place = tmp_path / "small"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this test mounts a small file system, and cannot here: {done.stderr.strip()}")
        yield place
        subprocess.run(["umount", str(place)], check=True)

    def test_a_disk_that_fills_up_and_has_room_again(self, tiny_checkpoint: Path, small_disk: Path) -> None:
        """Finished layers stay, and the next run goes on behind them."""
        output, other = small_disk / "out", small_disk / "other"
        request = QuantizeRequest(tiny_checkpoint, "fp8", output, overrides=("calibration.count=8",))
        told: list[int] = []

        def fill(stage: str, done: int, total: int) -> None:
            if stage == "quantize" and done > total // 2 and not other.exists():
                other.write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096))

        with pytest.raises(NvlmError, match=f"no space left on the disk that holds {small_disk}") as caught:
            quantize_checkpoint(plan_quantize(request), fill)
        assert caught.value.exit_code == FAILURE
        assert caught.value.hint is not None
        assert not output.exists()
        other.unlink()
        quantize_checkpoint(plan_quantize(request), lambda _stage, done, _total: told.append(done))
        assert sorted(path.name for path in small_disk.iterdir()) == ["out"]

    def test_a_disk_that_is_too_small(
        self, tiny_checkpoint: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
        command = ["quantize", str(tiny_checkpoint), "--recipe", "fp8", "-o", str(small_disk / "out")]
        assert run(command) == UNSUITABLE
        assert "the quantized checkpoint and the hidden states beside it take" in capsys.readouterr().err
        assert [path.name for path in small_disk.iterdir()] == ["other"]

    def test_a_limit_that_is_reached_during_the_work(
        self, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["quantize", str(tiny_checkpoint), "--recipe", "fp8", "--set", "calibration.count=2"]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            assert run([*command, "-o", str(tmp_path / "out")]) == FAILURE
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        text = capsys.readouterr().err
        assert "no space left on the disk" in text
        assert "hint: free some space" in text
        assert not (tmp_path / "out").exists()


def test_an_output_that_exists(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "kept").write_text("kept")
    assert run(["quantize", str(tiny_checkpoint), "--recipe", "fp8", "-o", str(output)]) == USAGE
    assert f"the output {output} exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "kept"]
