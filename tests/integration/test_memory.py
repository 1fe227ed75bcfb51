"""How much memory a build takes: a checkpoint is streamed, whatever its size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config

MIN_CHECKPOINT_BYTES = 2_000_000_000
LIMIT_BYTES = 1_500_000_000

# VmHWM is the peak of this very program; getrusage would count what its parent had when it forked.
PEAK = """
import json, re, sys
from pathlib import Path
from nvlm_deploy.cli.main import run
code = run(sys.argv[1:]) if sys.argv[1:] else 0
kilobytes = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)
print(json.dumps({"peak": int(kilobytes) * 1024}), file=sys.stderr)
sys.exit(code)
"""


def peak_bytes(*arguments: str) -> int:
    """Run one command line in a new process; return the most memory it had, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stderr.splitlines()[-1])["peak"])


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the shapes of InternViT-300M and Qwen2-0.5B: over 2 GB."""
    directory = tmp_path_factory.mktemp("large") / "checkpoint"
    write_random_checkpoint(released_style_config(SHAPES["nvlm-d-0.5b"]), directory, max_shard_bytes=10**9)
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert size >= MIN_CHECKPOINT_BYTES
    return directory


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("recipe", ["int4-rtn", "fp32"])
def test_a_build_streams_its_weights(
    large_checkpoint: Path,
    tmp_path: Path,
    recipe: str,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "bundle"
    names = ["--recipe", recipe, "--target", "cpu-x86", "-o", str(output)]
    own, peak = peak_bytes(), peak_bytes("engine", str(large_checkpoint), *names)
    size = sum(path.stat().st_size for path in large_checkpoint.iterdir())
    record_property("peak_bytes", peak)
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{recipe}: checkpoint {size / 1e9:.2f} GB, peak {peak / 1e6:,.0f} MB, "
            f"interpreter {own / 1e6:,.0f} MB, above it {(peak - own) / 1e6:,.0f} MB"
        )
    assert peak - own <= LIMIT_BYTES
