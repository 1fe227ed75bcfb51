"""What the fuzzers start from: small files in corpus/NAME, and the bundle that two of them open.

    python engines/runtime/fuzz/seeds.py corpus engines/runtime/fuzz/corpus
    python engines/runtime/fuzz/seeds.py bundle build/fuzz/bundle

Files that a fuzzer has found are in the same folders, under names that begin with `found-`; they stay.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvlm_deploy.cli.main import run
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import ModelShape, cross_style_config

SHAPE = ModelShape(
    tile_size=56,
    vision_hidden=32,
    vision_intermediate=64,
    vision_layers=1,
    vision_heads=2,
    hidden=64,
    intermediate=96,
    layers=2,
    heads=4,
    kv_heads=2,
    vocab_size=320,
    max_positions=256,
    bos_token_id=256,
    eos_token_id=258,
)
Seed = tuple[str, bytes]


def write_bundle(folder: Path) -> None:
    """Build the INT8 engine of a random NVLM-X; a folder that exists stays as it is."""
    if folder.exists():
        return
    with tempfile.TemporaryDirectory() as work:
        checkpoint = Path(work) / "checkpoint"
        write_random_checkpoint(cross_style_config(SHAPE, "X", [1]), checkpoint)
        names = ["--recipe", "int8", "--target", "cpu-x86", "--no-verify"]
        if run(["engine", str(checkpoint), *names, "-o", str(folder)]):
            raise NvlmError(f"{folder} was not built")


def images() -> Iterator[Seed]:
    """One file of each kind that the decoders tell apart."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (9, 11, 4), dtype=np.uint8)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        yield f"{mode.lower()}.png", _encoded(Image.fromarray(pixels, "RGBA").convert(mode), "PNG")
    yield "l16.png", _encoded(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG")
    plain = Image.fromarray(pixels[..., :3], "RGB")
    yield "rgb.jpg", _encoded(plain, "JPEG", quality=30, subsampling=2)
    yield "progressive.jpg", _encoded(plain, "JPEG", quality=30, progressive=True)
    yield "l.jpg", _encoded(plain.convert("L"), "JPEG", quality=30)
    yield "cmyk.jpg", _encoded(plain.convert("CMYK"), "JPEG", quality=30)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def texts() -> Iterator[Seed]:
    """Texts of several scripts, prompts with images, and chats."""
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "x"}]
    yield "scripts", "Don't  say 12,345\r\n\t日本語 👋🏽 e\u0301 \u1112\u1161\u11ab".encode()
    yield "special", b"<|im_start|>user\n<|im_end|><|vision_pad|>"
    yield "marked", b"a <image> b <image>\n"
    yield "written", b"<Image><tile_1><tile_global_thumbnail></Image><Image><tile_global_thumbnail></Image>"
    yield "chat", json.dumps([{"role": "user", "content": parts}]).encode()


def manifests(bundle: Path) -> Iterator[Seed]:
    """Manifest and config of the bundle; the fuzzer seals what it has changed."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    for key in ("manifest_copy", "manifest_sha256"):
        del manifest[key]
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    for name, value in (("manifest", manifest), ("config", config)):
        yield f"{name}.json", json.dumps(value, separators=(",", ":")).encode()


def tokenizers(bundle: Path) -> Iterator[Seed]:
    """The tokenizer of a few letters, with and without what Qwen2's file has around it."""
    whole = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    letters = list("abtĠ")
    vocabulary = {token: i for i, token in enumerate([*letters, "ab", "Ġt"])}
    for i, token in enumerate(whole["added_tokens"]):
        token["id"] = len(vocabulary) + i
    whole["model"] |= {"vocab": vocabulary, "merges": [["a", "b"], ["Ġ", "t"]]}
    yield "small.json", json.dumps(whole, separators=(",", ":")).encode()
    whole["normalizer"] = {"type": "NFC"}
    whole["model"]["merges"] = ["a b", "Ġ t"]
    yield "nfc.json", json.dumps(whole, separators=(",", ":")).encode()


def calls() -> Iterator[Seed]:
    """Bytes of fuzz_abi.cpp: kinds of calls, then their arguments."""
    for kind in range(4):
        yield f"kind-{kind}", struct.pack("<H", kind) + bytes(64)
    # A prompt of five bytes, a stop text of one, and an image of 40 x 50 pixels.
    sizes = struct.pack("<9H", 1, 0, 0, 4, 39, 49, 0, 0x55, 0)
    yield "generate", struct.pack("<H", 3) + b"\5What?" + b"\1q" + bytes(2) + sizes + bytes(96)


def changes() -> Iterator[Seed]:
    """Bytes of fuzz_bundle.cpp: a graph, then places and what is written there."""
    for graph in range(3):
        yield f"graph-{graph}", struct.pack("<H", graph)
        for place in (3, 200, 1500):
            yield f"graph-{graph}-{place}", struct.pack("<HIB", graph, place, 0x7F)


def write_corpus(folder: Path) -> None:
    """Write all seeds."""
    with tempfile.TemporaryDirectory() as work:
        bundle = Path(work) / "bundle"
        write_bundle(bundle)
        seeds = {
            "abi": calls(),
            "bundle": changes(),
            "encode": texts(),
            "image": images(),
            "manifest": manifests(bundle),
            "tokenizer_file": tokenizers(bundle),
        }
        for name, files in seeds.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for file, content in files:
                (folder / name / file).write_bytes(content)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("corpus", "bundle"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    (write_corpus if arguments.what == "corpus" else write_bundle)(arguments.folder)


if __name__ == "__main__":
    main()
