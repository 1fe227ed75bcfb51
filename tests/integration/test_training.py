"""Training by processes that are killed, stopped, or several."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import settings, train, trained_weights, write_checkpoint, write_lines

STEPS = 20
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("lines"), 24)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("variants")
    return {variant: write_checkpoint(variant, folder / variant) for variant in "DXH"}


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(json.dumps(values))
    return path


def start(config: Path, *launcher: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "nvlm_deploy.train", str(config)],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors.decode()[-2000:]


def steps_done(output: Path) -> int:
    path = output / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_step(process: subprocess.Popen[bytes], output: Path, step: int) -> None:
    while steps_done(output) < step:
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        time.sleep(0.02)


def close(one: Path, other: Path, atol: float) -> None:
    left, right = trained_weights(one), trained_weights(other)
    weights = [name for name in left if name.startswith(".model.")]
    assert weights
    for name in weights:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=atol, msg=name)


def test_a_killed_run_ends_with_the_weights_of_a_whole_one(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path
) -> None:
    packed = {
        "data": {"packing": True, "packing_buffer": 6},
        "max_steps": STEPS,
        "save_steps": 3,
        "dataloader_num_workers": 1,
    }
    train(checkpoints["D"], lines, tmp_path / "whole", **packed)
    config = write(tmp_path, settings(checkpoints["D"], lines, tmp_path / "parts", **packed))
    generator = random.Random(int(time.time()))
    first, second = sorted(generator.sample(range(2, STEPS - 2), 2))
    for step in (first, second):
        process = start(config)
        wait_for_step(process, tmp_path / "parts", step)
        process.send_signal(signal.SIGKILL)
        # The worker that reads samples finds out by itself, and holds the pipe until then.
        process.communicate(timeout=120)
    finish(start(config))
    whole, parts = (trained_weights(tmp_path / name / f"checkpoint-{STEPS}") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole), (first, second)
    finals = [tmp_path / name / "final" for name in ("whole", "parts")]
    shards = [path.name for path in finals[0].glob("*.safetensors")]
    assert shards
    assert all((finals[0] / name).read_bytes() == (finals[1] / name).read_bytes() for name in shards)


def test_sigterm_saves_and_says_so(checkpoints: dict[str, Path], lines: Path, tmp_path: Path) -> None:
    values = settings(checkpoints["D"], lines, tmp_path / "out", max_steps=10_000, save_steps=10_000)
    process = start(write(tmp_path, values))
    wait_for_step(process, tmp_path / "out", 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    (saved,) = (tmp_path / "out").glob("checkpoint-*")
    step = int(saved.name.removeprefix("checkpoint-"))
    assert f"stopped and saved at step {step:,}" in errors.decode()
    assert steps_done(tmp_path / "out") == step


@pytest.mark.parametrize("variant", "DXH")
def test_two_processes_equal_one(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path, variant: str
) -> None:
    # Weights in BF16 alone would hide differences, so checkpoints of the runs are compared, in FP32.
    options: dict[str, Any] = {"max_steps": STEPS, "learning_rate": 1e-4}
    train(checkpoints[variant], lines, tmp_path / "one", **options, gradient_accumulation_steps=2)
    values = settings(checkpoints[variant], lines, tmp_path / "two", **options)
    finish(start(write(tmp_path, values), *TWO_PROCESSES))
    close(tmp_path / "one" / f"checkpoint-{STEPS}", tmp_path / "two" / f"checkpoint-{STEPS}", 1e-5)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_decoder_split_over_two_processes_equals_one(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-4}
    train(checkpoints["H"], lines, tmp_path / "one", **options)
    values = settings(checkpoints["H"], lines, tmp_path / "two", **options, tensor_parallel_size=2)
    finish(start(write(tmp_path, values), *TWO_PROCESSES))
    close(tmp_path / "one" / "checkpoint-4", tmp_path / "two" / "checkpoint-4", 1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_layers_train(checkpoints: dict[str, Path], lines: Path, tmp_path: Path) -> None:
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    packed = {"data": {"packing": True, "packing_buffer": 4}, "max_steps": 2}
    train(checkpoints["D"], lines, tmp_path / "plain", **packed)
    train(checkpoints["D"], lines, tmp_path / "compiled", **packed, **compiled)
    close(tmp_path / "plain" / "checkpoint-2", tmp_path / "compiled" / "checkpoint-2", 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("variant", "DXH")
def test_thirty_two_samples_are_learned_by_heart(tmp_path: Path, variant: str) -> None:
    from nvlm_deploy.calibration.jsonl import JsonlConversations
    from nvlm_deploy.models import CrossTiles, load_model
    from nvlm_deploy.preprocess import PromptBuilder, Tokenizer, normalize_tiles, preprocess_images

    lines = write_lines(tmp_path / "lines", 32, text_every=33)
    checkpoint = write_checkpoint(variant, tmp_path / "model")
    result = train(
        checkpoint,
        lines,
        tmp_path / "out",
        freeze=[],
        max_steps=300,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        logging_steps=50,
        save_steps=150,
    )
    assert result.output is not None
    model = load_model(result.output)
    tokenizer = Tokenizer.from_directory(checkpoint)
    builder = PromptBuilder(tokenizer, model.config)
    right = 0
    for number in range(32):
        conversation = JsonlConversations(lines)[number]
        tiled = preprocess_images(conversation.images, model.config)
        prompt = builder.build(conversation.prompt, [len(image) for image in tiled])
        mask = torch.zeros(1, len(prompt), dtype=torch.bool)
        mask[0, torch.from_numpy(prompt.visual_positions)] = True
        tiles = [torch.from_numpy(normalize_tiles(image.tiles)) for image in tiled]
        pixels = torch.cat(tiles) if tiles else None
        answer = model.generate(
            torch.from_numpy(prompt.input_ids)[None],
            pixels,
            mask,
            max_new_tokens=20,
            stop_ids=(tokenizer.eos_id,),
            tiles=CrossTiles.of([prompt]) if pixels is not None else None,
        )
        right += tokenizer.decode(answer) == conversation.answer
    assert right == 32
