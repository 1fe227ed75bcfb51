"""Whole small runs in one process: accumulation, resume, export, adapters, metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from nvlm_deploy.cli.train import EXIT_STOPPED
from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.models import load_model
from nvlm_deploy.train.export import merge_adapters
from nvlm_deploy.train.lora import merged_model
from nvlm_deploy.train.metrics import MetricsLog
from tests.training import settings, train, trained_weights


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_what_is_open_and_leaves_a_checkpoint(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path
) -> None:
    result = train(checkpoints["D"], lines, tmp_path / "out", data={"packing": True, "packing_buffer": 4})
    assert result.step == 4
    assert result.output == tmp_path / "out" / "final"
    before, after = load_model(checkpoints["D"]).state_dict(), load_model(result.output).state_dict()
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("vision."), name
    assert (result.output / "tokenizer.json").read_bytes() == (
        checkpoints["D"] / "tokenizer.json"
    ).read_bytes()
    found = rows(tmp_path / "out")
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert found[-1]["loss"] < found[0]["loss"]
    assert set(found[0]["loss_by_source"]) == {"lines"}
    for key in ("tokens_per_second", "samples_per_second", "mfu", "peak_memory_bytes", "grad_norm"):
        assert all(row[key] > 0 for row in found), key


def test_accumulated_micro_batches_equal_one_batch(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path
) -> None:
    train(checkpoints["H"], lines, tmp_path / "a", per_device_train_batch_size=4, max_steps=2)
    accumulated = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    train(checkpoints["H"], lines, tmp_path / "b", **accumulated, max_steps=2)
    one, four = (trained_weights(tmp_path / name / "checkpoint-2") for name in "ab")
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=0, atol=1e-5, msg=name)


def test_going_on_is_bit_exact_and_checks_the_config(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = {"data": {"packing": True, "packing_buffer": 4}, "save_steps": 2, "save_total_limit": 2}
    train(checkpoints["X"], lines, tmp_path / "whole", **packed)
    # Stops after the second step, as SIGTERM has it.
    import nvlm_deploy.train.loop as loop

    whole_step = loop.Trainer.train_step

    def stop_at_two(self: loop.Trainer) -> None:
        whole_step(self)
        self.stopping = self.step == 2

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "train_step", stop_at_two)
        assert train(checkpoints["X"], lines, tmp_path / "parts", **packed).output is None
    (tmp_path / "parts" / "checkpoint-3.tmp").mkdir()
    assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2]
    with pytest.raises(UsageError, match="was trained with learning_rate"):
        train(checkpoints["X"], lines, tmp_path / "parts", **packed, learning_rate=5e-4)
    train(checkpoints["X"], lines, tmp_path / "parts", **packed)
    whole, parts = (trained_weights(tmp_path / name / "checkpoint-4") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert {path.name for path in (tmp_path / "parts").glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-4",
    }
    assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2, 3, 4]


def test_adapters_are_pefts_own_and_merge(checkpoints: dict[str, Path], lines: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "up_proj"],
        "modules_to_save": ["projector"],
    }
    result = train(checkpoints["X"], lines, tmp_path / "out", freeze=[], lora=lora, learning_rate=1e-2)
    assert result.output == tmp_path / "out" / "adapter"
    base = load_model(checkpoints["X"])
    wrapped = peft.PeftModel.from_pretrained(load_model(checkpoints["X"]), str(result.output))
    merge_adapters(checkpoints["X"], result.output, tmp_path / "merged")
    merged = merged_model(load_model(checkpoints["X"]), result.output)
    ids = torch.tensor([[256, 65, 66, 67]])
    with torch.no_grad():
        expected = wrapped.base_model.model(ids)
        torch.testing.assert_close(merged(ids), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(base(ids), expected, atol=1e-4)
        stored = load_model(tmp_path / "merged")
        torch.testing.assert_close(stored(ids), expected, rtol=0.1, atol=2e-2)
    names = {n for n, p in merged.named_parameters() if not torch.equal(p, base.get_parameter(n))}
    assert {n.rsplit(".", 2)[1] for n in names if not n.startswith("projector")} == {"q_proj", "up_proj"}
    assert any(n.startswith("projector") for n in names)


def test_adapters_name_what_is_not_there(checkpoints: dict[str, Path], lines: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = {"target_modules": ["q_prj"]}
    with pytest.raises(UsageError, match="q_prj") as caught:
        train(checkpoints["D"], lines, tmp_path / "out", freeze=[], lora=lora)
    assert "q_proj" in str(caught.value.hint)


def test_bf16_trains(checkpoints: dict[str, Path], lines: Path, tmp_path: Path) -> None:
    options = {"bf16": True, "gradient_checkpointing": True, "max_steps": 3}
    train(checkpoints["X"], lines, tmp_path / "out", **options)
    found = rows(tmp_path / "out")
    assert found[-1]["loss"] < found[0]["loss"]


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    MetricsLog(tmp_path, 2).write({"step": 3, "loss": 1.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_verbs(checkpoints: dict[str, Path], lines: Path, tmp_path: Path) -> None:
    from nvlm_deploy.cli.train import configs, run, show

    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings(checkpoints["D"], lines, tmp_path / "out")))
    call = CliRunner().invoke
    plan = json.loads(call(run, [str(path), "--dry-run", "--json"], catch_exceptions=False).stdout)
    model = load_model(checkpoints["D"])
    trained = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("vision."))
    assert sum(plan["trained"].values()) == trained
    assert plan["memory_per_process"]["optimizer"] == 8 * trained
    assert not (tmp_path / "out").exists()
    picture = tmp_path / "tiles.png"
    for number in map(str, range(12)):
        asked = call(show, [str(path), "--sample", number, "--json"], catch_exceptions=False)
        sample = json.loads(asked.stdout)
        if sample["tiles_per_image"]:
            break
    shown = call(show, [str(path), "--sample", number, "-o", str(picture)], catch_exceptions=False)
    assert f"{sample['loss_tokens']} count" in shown.stdout
    with Image.open(picture) as image:
        assert image.width == sum(sample["tiles_per_image"]) * (56 + 4) + 4
    assert "nvlm-d-sft" in call(configs, [], catch_exceptions=False).stdout
    assert EXIT_STOPPED == 143


def test_what_is_missing_is_said(checkpoints: dict[str, Path], lines: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"output_dir": None}, "no output_dir"),
        ({"model": None}, "no model"),
        ({"data": {"sources": None}}, "no data"),
        ({"data": {"max_length": 4096}}, "beyond the model's 1,024 positions"),
        ({"tensor_parallel_size": 2}, "does not divide 1 process"),
    ):
        values = settings(checkpoints["D"], lines, tmp_path / "out")
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        from nvlm_deploy.train.run import run_training

        with pytest.raises(UsageError, match=message):
            run_training(TrainingConfig.model_validate(values), tmp_path)
