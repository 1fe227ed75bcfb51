"""A build that is killed at any moment leaves all of its output or none, and the next one succeeds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROUNDS = 20
# A round that ends before the kill proves nothing, so most must not.
MIN_KILLED = 10

# Loads everything once and then forks, so that a kill falls into the build and not into the imports.
# Reports one JSON line per round: whether the build was killed, and what lay there after the kill and
# after the next run.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import nvlm_deploy.pipeline.engine, nvlm_deploy.pipeline.plan, nvlm_deploy.cli.engine
from nvlm_deploy.cli.main import run
from nvlm_deploy.config.manifest import verify_files

rounds, output, arguments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

def start():
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(run(arguments))
    return child

def listing():
    return sorted(path.name for path in output.parent.iterdir())

def clear():
    verify_files(output)
    os.system(f"rm -r '{output}'")

def build_seconds():
    begin = time.monotonic()
    assert os.waitpid(start(), 0)[1] == 0
    elapsed = time.monotonic() - begin
    clear()
    return elapsed

# The first one is slower than the rest: files are not in memory yet.
duration = min(build_seconds() for _ in range(3))
random.seed(7)
for number in range(rounds):
    child = start()
    if number % 2:
        # Half of them fall behind the first file, however slow the machine is.
        end = time.monotonic() + 60
        while not listing() and time.monotonic() < end:
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.2 * duration))
    else:
        time.sleep(random.uniform(0, duration))
    os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    after_kill = listing()
    if output.exists():
        clear()
    status = os.waitpid(start(), 0)[1]
    print(json.dumps([killed, after_kill, status, listing()]), flush=True)
    clear()
"""

# A shell that starts something in the background lets it ignore interrupts.
MAIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from nvlm_deploy.cli.main import main; main()"
)


@pytest.mark.timeout(900)
def test_kill_9_at_random_moments(
    tiny_checkpoint: Path, tmp_path: Path, engine_arguments: Callable[..., list[str]]
) -> None:
    output = tmp_path / "bundle"
    command = [sys.executable, "-c", KILLER, str(ROUNDS), str(output)]
    done = subprocess.run(
        command + engine_arguments(tiny_checkpoint, output), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == ROUNDS
    moments = set()
    for killed, after_kill, status, after_next in reports:
        assert len(after_kill) <= 1
        left = after_kill[0] if after_kill else "nothing"
        moments.add("bundle" if left == "bundle" else "work" if ".building-" in left else left)
        assert killed or left == "bundle"
        assert status == 0
        assert after_next == ["bundle"], "the next run removes what the killed one left"
    assert moments <= {"bundle", "work", "nothing"}
    assert "work" in moments, "no kill fell into the build itself"
    assert sum(killed for killed, *_ in reports) >= MIN_KILLED


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "terminated"]
)
def test_an_interrupted_build_leaves_nothing(
    tiny_checkpoint: Path,
    tmp_path: Path,
    engine_arguments: Callable[..., list[str]],
    number: signal.Signals,
    code: int,
) -> None:
    arguments = engine_arguments(tiny_checkpoint, tmp_path / "bundle")
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (code, ""), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
