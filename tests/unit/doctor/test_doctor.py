"""The doctor on recorded machines, and on this one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.catalog import list_names
from nvlm_deploy.doctor import Report, ThisMachine, Wanted, examine
from nvlm_deploy.doctor.compatibility import TENSORRT_LLM, release, row_of, satisfies
from nvlm_deploy.doctor.facts import gather
from tests.unit.doctor.recorded import Recorded

ORIN = Wanted(
    "jetson-agx-orin-64gb", "tensorrt_llm", "aarch64", 87, {"tensorrt_llm": "0.12.0", "tensorrt": "10.3"}
)
H100 = Wanted("h100-80gb", "tensorrt_llm", "x86_64", 90, {"tensorrt_llm": "1.2.1", "tensorrt": "10.14.1"})
CPU = Wanted("cpu-x86", "onnxruntime", "x86_64", None)


def said(report: Report, status: str) -> list[str]:
    return [f"{line.topic}: {line.found} -> {line.advice}" for line in report.lines if line.status == status]


def test_a_fresh_orin_is_told_how_to_become_fast() -> None:
    report = examine(Recorded.load("agx-orin"))
    assert said(report, "error") == []
    warnings = "\n".join(said(report, "warning"))
    assert "nvpmodel: MODE_30W -> not all of the GPU: sudo nvpmodel -m 0" in warnings
    assert "jetson_clocks: GPU 306 to 625 MHz -> clocks follow the load: sudo jetson_clocks" in warnings
    assert "swap: 0.0 GiB on disk, 5.1 GiB compressed in memory -> zram swaps into the memory" in warnings
    assert len(report.lines) > 12
    found = {line.topic: line.found for line in report.lines}
    assert found["jetpack"] == "JetPack 6.2, Jetson Linux 36.4.3"
    assert found["gpu"] == "Orin (nvgpu), compute capability 8.7, memory shared with the CPU"
    assert found["tensorrt"] == "10.3.0.30"
    assert found["memory"] == "55.3 GiB of 61.4 GiB are free, shared by GPU and CPU"
    assert found["cma"] == "185 of 256 MiB free"


def test_an_orin_that_is_set_up_is_in_order() -> None:
    fresh = Recorded.load("agx-orin")
    tuned = replace(
        fresh,
        commands={
            **{name: text for name, text in fresh.commands.items() if name != "jetson_clocks --show"},
            "nvpmodel -q": "NV Power Mode: MAXN\n0\n",
        },
        # jetson_clocks needs root where the kernel's own numbers do not.
        files={
            **fresh.files,
            "proc/swaps": "Filename Type Size Used Priority\n/swapfile file 33554428 0 -2\n",
            "sys/class/devfreq/17000000.gpu/min_freq": "1300500000\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
        },
    )
    kept = said(examine(tuned), "warning")
    assert [text.split(":")[0] for text in kept] == ["onnxruntime"]


def test_a_target_asks_for_its_compiler() -> None:
    orin = Recorded.load("agx-orin")
    (text,) = said(examine(orin, ORIN), "error")
    assert text.startswith("target: TensorRT-LLM, which compiles for it, is not installed -> install 0.12.0")
    second = replace(ORIN, backend="tensorrt")
    assert said(examine(orin, second), "error") == []
    older = replace(orin, installed={**orin.installed, "tensorrt-llm": "1.2.1"})
    texts = said(examine(older, ORIN), "error")
    assert any(
        "tensorrt_llm: 1.2.1 -> the branch v0.12.0-jetson is the only one for Orin" in text for text in texts
    )
    assert any("engines for it are made with 0.12.0" in text for text in texts)


def test_a_server_in_order_has_no_error() -> None:
    report = examine(Recorded.load("h100"), H100)
    assert said(report, "error") == []
    assert said(report, "warning") == []
    assert "the GPU is that of h100-80gb" in [line.found for line in report.lines]


def test_what_does_not_go_together_is_named_with_both_versions() -> None:
    report = examine(Recorded.load("mixed"))
    errors, warnings = "\n".join(said(report, "error")), "\n".join(said(report, "warning"))
    for text in (
        "cuda: toolkit 13.0 with driver 570.86.15 -> CUDA 13 needs driver 580.65",
        "tensorrt 11.4.0.106 beside TensorRT-LLM 1.2.1, which needs tensorrt~=10.14.1",
        "torch 2.13.0+cu130 beside TensorRT-LLM 1.2.1, which needs torch>=2.9.1,<2.10",
        "transformers 5.23.0 beside TensorRT-LLM 1.2.1, which needs transformers==4.57.3",
        "Python 3.11.7 with TensorRT-LLM 1.2.1 -> its wheels are for Python 3.10 and 3.12",
        "a driver for CUDA 12.8 with TensorRT-LLM 1.2.1",
        "torch: 2.13.0+cu130, and a driver for CUDA 12.8 -> update the driver",
        "modelopt: 0.47.0 without requests",
        "disk: 1.5 GB free here",
    ):
        assert text in errors
    for text in (
        "gpu: the GPUs are not of one kind",
        "onnxruntime and onnxruntime-gpu are installed side by side",
        "its TensorRT provider needs libnvinfer.so.10",
        "its CUDA provider needs libcudnn.so.9",
    ):
        assert text in warnings


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (H100, "h100-80gb has compute capability 9.0, and this GPU 8.9"),
        (ORIN, "jetson-agx-orin-64gb is aarch64, this machine is x86_64"),
        (replace(H100, backend="tensorrt_rtx"), "does not compile for compute capability 9.0"),
        (replace(H100, backend="tensorrt"), "TensorRT 11.4.0.106, and engines for it are made with 10.14.1"),
    ],
)
def test_another_target_is_refused_with_the_reason(wanted: Wanted, text: str) -> None:
    assert text in "\n".join(said(examine(Recorded.load("mixed"), wanted), "error"))


def test_old_and_unknown_jetsons() -> None:
    orin = Recorded.load("agx-orin")
    for revision, status, text in (
        ("# R35 (release), REVISION: 5.0, GCID", "error", "too old for these graphs"),
        ("# R41 (release), REVISION: 1.0, GCID", "warning", "not known here"),
    ):
        other = replace(orin, files={**orin.files, "etc/nv_tegra_release": revision}, commands={})
        assert text in "\n".join(said(examine(other), status))
    assert gather(replace(orin, commands={})).gpus[0].name == "NVIDIA Jetson AGX Orin Developer Kit"


def test_this_machine_is_looked_at_without_torch() -> None:
    code = (
        "import sys; from nvlm_deploy.cli.main import run; code = run(['doctor', '--json']); "
        "assert 'torch' not in sys.modules; assert 'modelopt' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == (3 if report["errors"] else 0), done.stderr
    topics = {line["topic"]: line for line in report["lines"]}
    assert {"machine", "gpu", "tensorrt", "onnxruntime", "torch", "memory", "disk"} <= set(topics)
    assert all(line["advice"] for line in report["lines"] if line["status"] != "ok")


def test_errors_are_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    device = "jetson-agx-orin-64" if ThisMachine().architecture == "x86_64" else "h100-80"
    wanted = next(name for name in list_names("target") if name.startswith(device))
    assert run(["doctor", "--target", wanted]) == 3
    captured = capsys.readouterr()
    assert "error    target" in captured.out
    assert "things are not in order" in captured.err
    assert run(["doctor", "--set", "sm=90"]) == 2


def test_a_cpu_target_needs_no_gpu() -> None:
    machine = replace(Recorded.load("h100"), commands={}, loads=("CPUExecutionProvider",))
    assert said(examine(machine, CPU), "error") == []
    gpu = replace(CPU, name="h100-80gb", sm=90)
    assert "which has no CUDA provider here" in "\n".join(said(examine(machine, gpu), "error"))


@pytest.mark.parametrize(
    ("version", "requirement", "holds"),
    [
        ("10.14.1.48.post1", "~=10.14.1", True),
        ("10.15.0", "~=10.14.1", False),
        ("10.14.0", "~=10.14.1", False),
        ("0.47.0", "~=0.37", True),
        ("1.0", "~=0.37", False),
        ("2.9.1+cu130", ">=2.9.1,<2.10", True),
        ("2.10.0", ">=2.9.1,<2.10", False),
        ("4.57.3", "==4.57.3", True),
        ("4.42.5", "<=4.42.4", False),
    ],
)
def test_requirements(version: str, requirement: str, holds: bool) -> None:
    assert satisfies(version, requirement) is holds


def test_the_table_is_in_order() -> None:
    assert [release(row.release) for row in TENSORRT_LLM] == sorted(
        release(row.release) for row in TENSORRT_LLM
    )
    assert row_of("1.2.0") == row_of("1.2.1") != row_of("1.1.0")
    assert row_of("0.99") is None
    with pytest.raises(ValueError, match="is no requirement"):
        satisfies("1.0", "newer")
