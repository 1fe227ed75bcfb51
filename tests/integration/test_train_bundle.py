"""From two steps of training to an engine that was calibrated and verified with the training's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.calibration import load_samples
from nvlm_deploy.calibration.jsonl import JsonlConversations
from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import TRAIN, run
from nvlm_deploy.config.calibration import read_calibration_set
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.training import DataSection
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.runtime import Engine
from nvlm_deploy.train.data.sample import build_train_sample
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.probe_file import probe_prompts
from tests.training import settings, write_checkpoint, write_lines

HELD_OUT = 4


def train(arguments: list[str]) -> int:
    return run_program(TRAIN, arguments)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, finished, as a config of its own."""
    folder = tmp_path_factory.mktemp("run")
    lines = write_lines(folder / "lines", 12)
    checkpoint = write_checkpoint("D", folder / "model")
    values = settings(checkpoint, lines, folder / "out", max_steps=2, data={"held_out": HELD_OUT})
    path = folder / "config.yaml"
    path.write_text(json.dumps(values))
    assert train(["run", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def bundle(config: Path) -> Path:
    output = config.parent / "bundle"
    counts = ["--calibration", "6", "--probes", "4"]
    assert train(["export-bundle", str(config), *counts, "-o", str(output)]) == 0
    return output


def facts(bundle: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())
    return read


def test_what_is_probed_was_never_trained_on(bundle: Path, config: Path, tmp_path: Path) -> None:
    known = facts(bundle)
    shown, asked = ({each["label"] for each in known[key]} for key in ("calibration", "probes"))
    assert len(shown) == 6
    assert 1 <= len(asked) <= HELD_OUT
    assert not shown & asked
    again = tmp_path / "again"
    assert train(["export-bundle", str(config), "--calibration", "6", "--probes", "4", "-o", str(again)]) == 0
    assert facts(again) == known


def test_ids_are_those_of_trainer_calibration_engine_and_contract(bundle: Path, tmp_path: Path) -> None:
    checkpoint = bundle / "checkpoint"
    tokenizer, shape = Tokenizer.from_directory(checkpoint), NvlmConfig.from_directory(checkpoint)
    spec, folder = read_calibration_set(str(bundle / "calibration.yaml"))
    samples = load_samples(spec, shape, tokenizer, folder)
    digests = [each["digest"] for each in facts(bundle)["calibration"]]
    assert [sample.digest().hex() for sample in samples] == digests
    engine = tmp_path / "engine"
    options = ["--recipe", "fp8", "--calibration", str(bundle / "calibration.yaml"), "--target", "cpu-x86"]
    assert run(["engine", str(checkpoint), *options, "--no-verify", "-o", str(engine)]) == 0
    path = bundle / "probes" / "probes.jsonl"
    assert run(["verify", str(engine), "--against", str(checkpoint), "--probes", str(path)]) == 0
    builder, data = PromptBuilder(tokenizer, shape), DataSection(max_length=512)
    questions = JsonlConversations(path)
    trained = [build_train_sample(questions[number], builder, data) for number in range(len(questions))]
    contract = {prompt.label: prompt for prompt in probe_prompts(Contract(engine), path)}
    opened = Engine.open(engine)
    for number, sample in enumerate(trained):
        conversation = questions[number]
        prompt, _ = opened.preprocess(list(conversation.prompt), list(conversation.images))
        length = len(prompt.input_ids)
        assert sample.answered.input_ids[:length].tolist() == prompt.input_ids.tolist()
        # The contract leaves out the end of the turn, from which nothing is predicted.
        sequence = contract[f"probe {number + 1}"].sequence
        assert sample.answered.input_ids[:-1].tolist() == sequence.input_ids.tolist()


def test_a_run_that_is_not_finished_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["-o", str(config.parent / "no-bundle")]
    assert train(["export-bundle", str(config), "--set", "max_steps=3", *output]) == 2
    assert "max_steps 2, and the config has 3" in capsys.readouterr().err
    assert train(["export-bundle", str(config), "--set", f"output_dir={config.parent}/none", *output]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert train(["export-bundle", str(config), "--set", "data.held_out=0", *output]) == 2
    assert "data.held_out is 0" in capsys.readouterr().err
