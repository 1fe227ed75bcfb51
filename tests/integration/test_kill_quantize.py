"""A quantization that is killed at any moment goes on behind its last finished layer, to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.variants import write_variant

ROUNDS = 10
# A round that ends before the kill, or that is killed before its first layer, proves nothing.
MIN_RESUMED = 5

# Loads everything once and then forks, so that a kill falls into the work and not into the imports. A round
# is killed some milliseconds after a random number of its layers is finished, however slow the machine is.
# Reports one JSON line per round: which layers were finished then, and how the next run ended.
KILLER = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import modelopt.torch.quantization
import nvlm_deploy.pipeline.quantize
from nvlm_deploy.cli.main import run

rounds, folder, arguments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

def start(output):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(run([*arguments, "-o", str(output)]))
    return child

def seconds(output):
    begin = time.monotonic()
    assert os.waitpid(start(output), 0)[1] == 0
    return time.monotonic() - begin

# The first one is slower than the rest: files are not in memory yet.
duration = min(seconds(folder / name) for name in ("whole", "again"))
steps = len(json.loads((folder / "whole" / "quantization.json").read_text())["steps"])
random.seed(3)

def wait_for(pieces, count):
    end = time.monotonic() + 60
    while len(list(pieces.glob("*.json"))) < count and time.monotonic() < end:
        time.sleep(0.002)

for number in range(rounds):
    output = folder / f"killed-{number}"
    child = start(output)
    pieces = folder / f".killed-{number}.unfinished" / "pieces"
    wait_for(pieces, random.randrange(steps))
    time.sleep(duration / steps * random.random())
    os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    notes = [json.loads(path.read_text()) for path in sorted(pieces.glob("*.json"))]
    existed = output.exists()
    status = 0 if existed else os.waitpid(start(output), 0)[1]
    finished = {note["step"]: note["seconds"] for note in notes}
    report = {"killed": killed, "existed": existed, "status": status, "finished": finished}
    print(json.dumps(report), flush=True)
"""


def without_times(manifest: dict[str, Any]) -> dict[str, Any]:
    steps = [
        {key: value for key, value in step.items() if not key.startswith("seconds")}
        for step in manifest["steps"]
    ]
    return {**manifest, "steps": steps}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "rounds", "least"), [("D", ROUNDS, MIN_RESUMED), ("H", 3, 1)])
def test_kill_9_at_random_moments(
    kind: str, rounds: int, least: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("modelopt")
    checkpoint = tiny_checkpoint if kind == "D" else write_variant(kind, tmp_path / "released")
    arguments = ["quantize", str(checkpoint), "--recipe", "int4-awq-vit-int8"]
    for change in ("weights.language.group_size=32", "awq.alpha_step=0.5", "calibration.count=2"):
        arguments += ["--set", change]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(rounds), str(tmp_path), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == rounds
    whole = tmp_path / "whole"
    expected = {path.name: path.read_bytes() for path in whole.iterdir() if path.suffix != ".json"}
    manifest = json.loads((whole / "quantization.json").read_text())
    resumed = 0
    for number, report in enumerate(reports):
        assert report["killed"] or report["existed"]
        assert report["status"] == 0
        output = tmp_path / f"killed-{number}"
        found = {path.name: path.read_bytes() for path in output.iterdir() if path.suffix != ".json"}
        assert found == expected
        for path in whole.glob("*.json"):
            if path.name != "quantization.json":
                assert (output / path.name).read_bytes() == path.read_bytes(), path.name
        again = json.loads((output / "quantization.json").read_text())
        assert without_times(again) == without_times(manifest)
        # Finished layers were not made again: their times are those of the first run.
        times = {step["step"]: step["seconds"] for step in again["steps"]}
        assert times.items() >= report["finished"].items()
        resumed += not report["existed"] and len(report["finished"]) > 0
    assert resumed >= least
    # One that was killed behind its last step, its output in place, leaves what it could not remove any more.
    late = {f".killed-{n}.unfinished" for n, report in enumerate(reports) if report["existed"]}
    assert not {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} - late
