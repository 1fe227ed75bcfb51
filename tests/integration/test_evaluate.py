"""Benchmark runs on the trained example: killed and repeated, by engine, and under lmms-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import BUILD, EVAL
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.synthetic.documents import samples

QUESTIONS = 10
# Loads everything once and then forks, so that kills fall into the run and not into the imports. Each child
# is killed when it has added some lines, at a random moment; one that has them all before that ends the loop.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import nvlm_deploy.eval.run, nvlm_deploy.cli.evaluate_run
from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import EVAL

output, arguments = Path(sys.argv[1]), sys.argv[2:]
random.seed(3)

def size():
    return output.stat().st_size if output.exists() else 0

kills = []
while True:
    before, child = size(), os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(run_program(EVAL, arguments))
    end = time.monotonic() + 100
    while size() < before + 600 and time.monotonic() < end:
        if (done := os.waitpid(child, os.WNOHANG))[0]:
            print(json.dumps([kills, done[1]]))
            sys.exit()
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        continue
    kills.append(output.read_bytes().count(b"\\n"))
"""


@pytest.fixture(scope="module")
def documents(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out questions about generated documents in the plain format."""
    folder = tmp_path_factory.mktemp("documents")
    size = NvlmConfig.from_directory(example(repository)).tile_size
    lines = []
    for i, page in enumerate(islice(samples("heldout", QUESTIONS, tile_size=size), QUESTIONS)):
        page.image.save(folder / f"{i}.png")
        record = {"id": f"page-{i}", "image": f"{i}.png", "question": page.question}
        lines.append(json.dumps({**record, "references": [page.answer], "kind": page.kind}) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    return folder


def example(repository: Path) -> Path:
    return repository / "examples" / "nvlm-d-tiny"


def arguments(documents: Path, model: Path, output: Path) -> list[str]:
    names = ["--metric", "exact-strict", "--max-new-tokens", "16", "--json"]
    return ["run", str(documents / "data.jsonl"), "--model", str(model), "-o", str(output), *names]


def test_kill_9_in_the_middle(
    repository: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert run_program(EVAL, arguments(documents, example(repository), whole)) == 0
    report = json.loads(capsys.readouterr().out)
    # The example answers 96 % of held-out questions.
    assert report["score"] >= 0.75
    command = [sys.executable, "-c", KILLER, str(killed)]
    done = subprocess.run(
        [*command, *arguments(documents, example(repository), killed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills, status = json.loads(done.stdout)
    assert status == 0
    assert any(0 < lines < QUESTIONS for lines in kills), "no kill fell into the run"
    assert killed.read_bytes() == whole.read_bytes()


def test_an_engine_answers_like_its_checkpoint(
    repository: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    build = ["engine", str(example(repository)), "--recipe", "fp32", "--target", "cpu-x86", "--no-verify"]
    assert run_program(BUILD, [*build, "-o", str(bundle)]) == 0
    capsys.readouterr()
    outputs = []
    for model in (example(repository), bundle):
        output = tmp_path / f"{model.name}.jsonl"
        assert run_program(EVAL, arguments(documents, model, output)) == 0
        outputs.append(output.read_text())
    assert outputs[0] == outputs[1]
    other = arguments(documents, bundle, tmp_path / "nvlm-d-tiny.jsonl")
    capsys.readouterr()
    assert run_program(EVAL, other) == 2
    assert 'model.kind is "checkpoint", and now it is "engine"' in capsys.readouterr().err


LMMS_TASK = """
task: nvlm_documents
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: generate_until
doc_to_visual: !function images.load
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{references[0]}}}}"
generation_kwargs: {{max_new_tokens: 16, do_sample: false, temperature: 0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
LMMS_IMAGES = """
from pathlib import Path
from PIL import Image

def load(doc):
    return [Image.open(Path({folder!r}, doc["image"]))]
"""
LMMS_RUN = """
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager
from nvlm_deploy.eval.lmms import model_manifest

MODEL_REGISTRY_V2.register_manifest(model_manifest(), overwrite=True)
found = simple_evaluate(
    model="nvlm",
    model_args="pretrained=" + sys.argv[1],
    tasks=["nvlm_documents"],
    task_manager=TaskManager(include_path=sys.argv[2]),
    batch_size=1,
)
print(json.dumps(found["results"]["nvlm_documents"]["exact_match,none"]))
"""


def test_a_task_of_lmms_eval(repository: Path, documents: Path, tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval is not installed")
    (tmp_path / "task.yaml").write_text(LMMS_TASK.format(data=documents / "data.jsonl"))
    (tmp_path / "images.py").write_text(LMMS_IMAGES.format(folder=str(documents)))
    environment: dict[str, Any] = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", LMMS_RUN, str(example(repository)), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) >= 0.75
