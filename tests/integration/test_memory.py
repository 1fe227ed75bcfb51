"""How much memory work takes: a checkpoint is streamed, whatever its size."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.checkpoint.weight_table import model_shapes
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config

MIN_CHECKPOINT_BYTES = 2_000_000_000
LIMIT_BYTES = 1_500_000_000

# VmHWM is the peak of this very program; getrusage would count what its parent had when it forked.
PEAK = """
import importlib, json, re, sys, warnings
from pathlib import Path
from nvlm_deploy.cli.main import run
warnings.simplefilter("ignore")
for name in sys.argv.pop(1).split(","):
    importlib.import_module(name)
code = run(sys.argv[1:]) if sys.argv[1:] else 0
kilobytes = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)
print(json.dumps({"peak": int(kilobytes) * 1024}), file=sys.stderr)
sys.exit(code)
"""


def peak_bytes(*arguments: str, imports: str = "nvlm_deploy") -> int:
    """Run one command line in a new process; return the most memory it had, in bytes.

    Args:
        imports: modules that are imported first, with commas between them.
    """
    done = subprocess.run(
        [sys.executable, "-c", PEAK, imports, *arguments], capture_output=True, text=True, check=False
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
    own, peak = peak_bytes(), peak_bytes("engine", str(large_checkpoint), *names, "--no-verify")
    size = sum(path.stat().st_size for path in large_checkpoint.iterdir())
    record_property("peak_bytes", peak)
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{recipe}: checkpoint {size / 1e9:.2f} GB, peak {peak / 1e6:,.0f} MB, "
            f"interpreter {own / 1e6:,.0f} MB, above it {(peak - own) / 1e6:,.0f} MB"
        )
    assert peak - own <= LIMIT_BYTES


# The widths of NVLM-D-72B with one layer of the tower and four of the decoder.
WIDE = replace(SHAPES["nvlm-d-72b"], vision_layers=1, layers=4)
MIN_WIDE_BYTES = 13_500_000_000
GB = 1_000_000_000


@pytest.fixture
def wide_checkpoint(tmp_path: Path) -> Iterator[Path]:
    """A random checkpoint of these widths, about 14 GB, in a folder that is removed at once."""
    directory = tmp_path / "wide" / "checkpoint"
    write_random_checkpoint(released_style_config(WIDE), directory)
    assert sum(path.stat().st_size for path in directory.iterdir()) >= MIN_WIDE_BYTES
    yield directory
    shutil.rmtree(directory.parent)


def layer_bytes() -> int:
    """Bytes of one decoder layer in BF16, the largest thing in the model that is called a layer."""
    shapes = model_shapes(NvlmConfig.from_dict(released_style_config(WIDE)))
    return sum(
        2 * math.prod(shape) for name, shape in shapes.items() if name.startswith("language.layers.0.")
    )


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_quantizing_takes_the_memory_of_a_layer(
    wide_checkpoint: Path,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tools = "torch,modelopt.torch.quantization"
    output = wide_checkpoint.with_name("quantized")
    # One sample and 3 of AWQ's 11 ratios: more of them are not in memory at once.
    changes = ("--set", "calibration.count=1", "--set", "awq.alpha_step=0.5")
    arguments = ["quantize", str(wide_checkpoint), "--recipe", "int4-awq", *changes, "-o", str(output)]
    own, peak = peak_bytes(imports=tools), peak_bytes(*arguments, imports=tools)
    manifest = json.loads((output / "quantization.json").read_text())
    tokens = sum(manifest["calibration"]["tokens"].values())
    record_property("peak_bytes", peak)
    with capsys.disabled():
        print(  # noqa: T201
            f"\nint4-awq: decoder layer {layer_bytes() / GB:.2f} GB in BF16, peak {peak / GB:.2f} GB, "
            f"interpreter {own / GB:.2f} GB, above it {(peak - own) / GB:.2f} GB\n"
            f"{tokens:,} tokens; {estimate(manifest['steps'])}"
        )
    assert peak - own <= 3 * layer_bytes() + GB


# The same widths with four layers of the decoder.
WIDER = replace(WIDE, layers=4)
MIN_WIDER_BYTES = 13_500_000_000
EXPORT_LIMIT_BYTES = 6 * GB
# INT4 without any calibration: what is measured is the export, and not the search.
ROUNDED = ("--recipe", "int4-awq", "--set", "algorithm=max")


@pytest.fixture
def wider_checkpoint(tmp_path: Path) -> Iterator[Path]:
    """A random checkpoint of these widths, about 14 GB, in a folder that is removed at once."""
    directory = tmp_path / "wider" / "checkpoint"
    write_random_checkpoint(released_style_config(WIDER), directory)
    assert sum(path.stat().st_size for path in directory.iterdir()) >= MIN_WIDER_BYTES
    yield directory
    shutil.rmtree(directory.parent)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_a_tensorrt_llm_checkpoint_is_written_in_pieces(
    wider_checkpoint: Path,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantized, output = (wider_checkpoint.with_name(name) for name in ("quantized", "output"))
    for name, source, tp in (("float16", wider_checkpoint, 2), ("int4", quantized, 4)):
        if source is quantized:
            assert peak_bytes("quantize", str(wider_checkpoint), *ROUNDED, "-o", str(quantized))
        began = time.perf_counter()
        ranks = ["--tp", str(tp), "--dtype", "float16", "-o", str(output)]
        peak = peak_bytes("export", str(source), "--format", "trtllm", *ranks)
        seconds = time.perf_counter() - began
        config = json.loads((output / "config.json").read_text())
        assert config["intermediate_size"] == (29568 if source is wider_checkpoint else 29696)
        size = sum(path.stat().st_size for path in output.glob("rank*"))
        record_property(f"peak_bytes_{name}", peak)
        with capsys.disabled():
            print(  # noqa: T201
                f"\nexport {name} TP {tp}: {size / GB:.2f} GB, peak {peak / GB:.2f} GB, {seconds:.0f} s"
            )
        assert peak <= EXPORT_LIMIT_BYTES
        shutil.rmtree(output)


def estimate(steps: list[dict[str, Any]]) -> str:
    """How long the full model would take here: its layers are alike, and all ratios take 12 passes, not 4."""
    whole = SHAPES["nvlm-d-72b"]
    layers = {"vision.layers.0": whole.vision_layers, "language.layers.1": whole.layers}
    shown = {step["step"]: step["seconds_shown"] for step in steps}
    rest = {step["step"]: step["seconds"] - step["seconds_shown"] for step in steps}
    sentences = []
    for step, count in layers.items():
        sentences.append(f"{step} (x {count}): {shown[step]:.0f} s a sample and {rest[step]:.0f} s")
    samples = 128
    shown_s = sum(count * shown[step] for step, count in layers.items()) * samples
    rest_s = sum(count * rest[step] for step, count in layers.items()) * 12 / 4
    hours = (shown_s + rest_s) / 3600
    sentences.append(f"the full model with {samples} samples and 11 ratios takes about {hours:.0f} h")
    return "; ".join(sentences)
