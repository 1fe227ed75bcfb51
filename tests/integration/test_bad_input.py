"""Bad input: a clear sentence, the right exit code, nothing on stdout, and nothing left behind."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nvlm_deploy.cli.main import run
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.pipeline.engine import build_engine_bundle
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine

FAILURE, USAGE, UNSUITABLE, VERIFICATION = 1, 2, 3, 4

Tensors = dict[str, torch.Tensor]
Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must fail with a code and nothing on stdout; returns what stderr says."""

    def check(arguments: list[str], code: int) -> str:
        assert run(arguments) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        return captured.err

    return check


@pytest.fixture
def build_refused(
    refused: Refused, engine_arguments: Callable[..., list[str]], tmp_path: Path
) -> Callable[..., str]:
    """Builds an engine that must fail and leave nothing; returns what stderr says."""

    def check(checkpoint: Path, code: int = FAILURE, *more: str) -> str:
        place = tmp_path / "out"
        place.mkdir()
        text = refused(engine_arguments(checkpoint, place / "bundle", *more), code)
        assert list(place.iterdir()) == []
        return text

    return check


def change_tensors(checkpoint: Path, name: str, change: Callable[[Tensors], object]) -> Path:
    """Change the shard that holds `name`; return its path."""
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    shard = checkpoint / str(index["weight_map"][name])
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)
    return shard


def fill_with_ones(name: str, tensors: Tensors) -> None:
    tensors[name].fill_(1)


def change_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def png_header(width: int, height: int) -> bytes:
    """A PNG file of a given size whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


class TestCheckpoint:
    QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"

    def test_a_missing_shard(self, checkpoint: Path, build_refused: Callable[..., str]) -> None:
        shard = checkpoint / "model-00003-of-00006.safetensors"
        shard.unlink()
        assert f"the shard {shard} is missing" in build_refused(checkpoint)

    @pytest.mark.parametrize("keep", [0, 5, 100, -1])
    def test_a_truncated_shard(self, checkpoint: Path, build_refused: Callable[..., str], keep: int) -> None:
        shard = checkpoint / "model-00002-of-00006.safetensors"
        shard.write_bytes(shard.read_bytes()[:keep])
        assert str(shard) in build_refused(checkpoint)

    def test_a_tensor_of_a_wrong_shape(self, checkpoint: Path, build_refused: Callable[..., str]) -> None:
        shard = change_tensors(
            checkpoint, self.QUERY, lambda t: t.update({self.QUERY: t[self.QUERY][:-1].clone()})
        )
        text = build_refused(checkpoint)
        assert f"{shard}: {self.QUERY} has the shape [63, 64], but config.json gives [64, 64]" in text

    def test_an_unknown_tensor(self, checkpoint: Path, build_refused: Callable[..., str]) -> None:
        unknown = self.QUERY.replace("q_proj", "q_porj")
        shard = change_tensors(checkpoint, self.QUERY, lambda t: t.update({unknown: t.pop(self.QUERY)}))
        index = checkpoint / "model.safetensors.index.json"
        index.write_text(index.read_text().replace(self.QUERY, unknown))
        text = build_refused(checkpoint)
        assert unknown in text
        assert self.QUERY in text
        assert str(shard.parent) in text

    def test_a_missing_tensor(self, checkpoint: Path, build_refused: Callable[..., str]) -> None:
        change_tensors(checkpoint, self.QUERY, lambda t: t.pop(self.QUERY))
        assert self.QUERY in build_refused(checkpoint)

    def test_an_unknown_architecture(self, checkpoint: Path, build_refused: Callable[..., str]) -> None:
        change_json(checkpoint / "config.json", lambda c: c.update(architectures=["LlavaForCausalLM"]))
        text = build_refused(checkpoint)
        assert (
            f"{checkpoint / 'config.json'}: architectures is ['LlavaForCausalLM']; supported: ['NVLM_D']"
            in text
        )

    def test_a_tokenizer_without_the_image_token(
        self, checkpoint: Path, build_refused: Callable[..., str]
    ) -> None:
        path = checkpoint / "tokenizer.json"
        path.write_text(path.read_text().replace("<|vision_pad|>", "<|visual_pad|>"))
        text = build_refused(checkpoint)
        assert f"{path} has no special token <|vision_pad|>" in text
        assert "hint: " in text

    def test_dummy_heads_that_are_not_zero(self, checkpoint: Path, build_refused: Callable[..., str]) -> None:
        prefix = "vision_model.encoder.layers.1.attn."
        for name in ("qkv.weight", "proj.weight"):
            change_tensors(checkpoint, prefix + name, partial(fill_with_ones, prefix + name))
        assert f"the dummy heads of {prefix}qkv.weight are not zero" in build_refused(checkpoint)

    def test_a_path_that_is_no_checkpoint(self, tmp_path: Path, build_refused: Callable[..., str]) -> None:
        assert "config.json does not exist" in build_refused(tmp_path / "nowhere")


class TestRequest:
    def test_an_output_that_exists(
        self,
        tiny_checkpoint: Path,
        tmp_path: Path,
        refused: Refused,
        engine_arguments: Callable[..., list[str]],
    ) -> None:
        output = tmp_path / "mine"
        output.mkdir()
        (output / "kept").write_text("kept")
        assert f"the output {output} exists already" in refused(
            engine_arguments(tiny_checkpoint, output), USAGE
        )
        assert [path.name for path in tmp_path.rglob("*")] == ["mine", "kept"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("--set", "weights.language.grup_size=64"), "the key 'weights.language.grup_size' is not known"),
            (("--set", "weights.language.group_size=63"), "group_size 63 is no power of two"),
            (("--set", "target.max_contxt=64"), "the key 'max_contxt' is not known"),
            (("--recipe", "int4-rnt"), "there is no recipe 'int4-rnt'"),
            (("--target", "cpu-x68"), "there is no target 'cpu-x68'"),
        ],
    )
    def test_a_name_or_value_that_is_wrong(
        self, tiny_checkpoint: Path, build_refused: Callable[..., str], change: tuple[str, str], message: str
    ) -> None:
        assert message in build_refused(tiny_checkpoint, USAGE, *change)

    def test_a_context_that_holds_no_image(
        self, tiny_checkpoint: Path, build_refused: Callable[..., str]
    ) -> None:
        text = build_refused(tiny_checkpoint, UNSUITABLE, "--set", "target.max_context=64")
        assert "a context of 64 tokens cannot hold an image of 7 tiles" in text
        assert "--set target.max_context=" in text


class TestImage:
    @pytest.fixture(params=["preprocess", "run"])
    def verb(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"this is no image", "image"),
            (png_header(64, 64), "image"),
            (png_header(0, 64), "image"),
            (png_header(100_000, 100_000), "may be a decompression bomb"),
        ],
        ids=["empty", "text", "truncated", "no pixels", "decompression bomb"],
    )
    def test_a_bad_image_names_itself(
        self, tiny_bundle: Path, tmp_path: Path, refused: Refused, verb: str, content: bytes, message: str
    ) -> None:
        image = tmp_path / "photo.png"
        image.write_bytes(content)
        text = refused([verb, str(tiny_bundle), "--image", str(image), "--prompt", "What?"], FAILURE)
        assert str(image) in text
        assert message in text
        assert list(tmp_path.iterdir()) == [image]

    def test_a_missing_image(self, tiny_bundle: Path, refused: Refused, verb: str) -> None:
        text = refused([verb, str(tiny_bundle), "--image", "nowhere.png", "--prompt", "What?"], FAILURE)
        assert "the image nowhere.png does not exist" in text


class TestBundle:
    def test_a_prompt_longer_than_the_context(self, tiny_bundle: Path, refused: Refused) -> None:
        text = refused(["run", str(tiny_bundle), "--prompt", "long " * 200], USAGE)
        assert "the engine's context is 512" in text
        assert "hint: " in text

    def test_an_image_that_leaves_no_room(self, tiny_bundle: Path, tmp_path: Path, refused: Refused) -> None:
        image = tmp_path / "wide.png"
        Image.new("RGB", (600, 400)).save(image)
        arguments = ["run", str(tiny_bundle), "--image", str(image), "--prompt", "long " * 80]
        assert "the engine's context is 512" in refused(arguments, USAGE)

    @pytest.mark.parametrize("verb", ["run", "inspect"])
    @pytest.mark.parametrize(
        "file",
        [
            "manifest.json",
            "config.json",
            "tokenizer.json",
            "vision/vision.onnx",
            "vision/vision.onnx.data",
            "llm/decoder.onnx",
            "llm/decoder.onnx.data",
        ],
    )
    def test_a_changed_byte_names_the_file(
        self, bundle: Path, refused: Refused, file: str, verb: str
    ) -> None:
        data = bytearray((bundle / file).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / file).write_bytes(data)
        more = ["--prompt", "What?"] if verb == "run" else []
        text = refused([verb, str(bundle), *more], VERIFICATION)
        assert f"{bundle / file} has changed since it was" in text
        assert "hint: rebuild" in text
        assert "nvlm-build engine CHECKPOINT --recipe " in text

    def test_a_missing_file(self, bundle: Path, refused: Refused) -> None:
        (bundle / "llm" / "decoder.onnx.data").unlink()
        text = refused(["run", str(bundle), "--prompt", "What?"], VERIFICATION)
        assert "decoder.onnx.data is missing from the bundle" in text

    def test_a_directory_that_is_no_bundle(self, tmp_path: Path, refused: Refused) -> None:
        text = refused(["run", str(tmp_path), "--prompt", "What?"], FAILURE)
        assert f"{tmp_path} is no engine bundle" in text


class TestFullDisk:
    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 80 MB of its own."""
        place = tmp_path / "small"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(place)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this test mounts a small file system, and cannot here: {done.stderr.strip()}")
        yield place
        subprocess.run(["umount", str(place)], check=True)

    def test_the_plan_finds_it_first(
        self,
        tiny_checkpoint: Path,
        small_disk: Path,
        refused: Refused,
        engine_arguments: Callable[..., list[str]],
    ) -> None:
        (small_disk / "other").write_bytes(bytes(70_000_000))
        text = refused(engine_arguments(tiny_checkpoint, small_disk / "bundle"), UNSUITABLE)
        assert "GB free, and the engine takes" in text
        assert [path.name for path in small_disk.iterdir()] == ["other"]

    def test_a_disk_that_fills_up_during_the_build(self, tiny_checkpoint: Path, small_disk: Path) -> None:
        plan = plan_engine(BuildRequest(tiny_checkpoint, "int4-rtn", "cpu-x86", small_disk / "bundle"))
        other = small_disk / "other"
        other.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
        with pytest.raises(NvlmError, match=f"no space left on the disk that holds {small_disk}") as caught:
            build_engine_bundle(plan)
        assert caught.value.exit_code == FAILURE
        assert caught.value.hint is not None
        assert list(small_disk.iterdir()) == [other]

    def test_a_limit_that_is_reached_during_the_build(
        self, tiny_checkpoint: Path, build_refused: Callable[..., str]
    ) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            text = build_refused(tiny_checkpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "no space left on the disk" in text
        assert "hint: free some space" in text
