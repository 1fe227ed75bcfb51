"""What the releases of TensorRT-LLM that checkpoints are written for can read.

Sources: support matrix and `quantization/mode.py` of each release, README4Jetson.md of v0.12.0-jetson.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvlm_deploy.errors import UnsuitableError, UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Release:
    """One release.

    algorithms: its names of quantized weights. fp8: whether there is FP8, for the cache, too. several_gpus:
    whether it is built with TP and PP. mixed: whether layers may have formats of their own. tall_scales:
    whether its loader takes scales of groups for transposed already unless there are more rows than groups.
    cross_attention: whether it has a decoder that NVLM-X and NVLM-H can be built on.
    """

    name: str
    description: str
    algorithms: tuple[str, ...]
    fp8: bool
    several_gpus: bool
    mixed: bool
    tall_scales: bool
    cross_attention: bool

    def check_algorithm(self, algorithm: str) -> None:
        """Raise UnsuitableError unless weights of `algorithm` can be loaded."""
        if algorithm not in self.algorithms:
            raise UnsuitableError(
                f"TensorRT-LLM {self.name} has no {algorithm}",
                hint=f"it takes 16 bits, {', '.join(self.algorithms)}; --version names another release",
            )


RELEASES = {
    release.name: release
    for release in (
        Release(
            "1.2",
            "TensorRT-LLM 1.2.x: the last stable release that builds engines",
            ("FP8", "W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL", "NVFP4"),
            fp8=True,
            several_gpus=True,
            mixed=True,
            tall_scales=False,
            cross_attention=True,
        ),
        Release(
            "0.12-jetson",
            "TensorRT-LLM v0.12.0-jetson: JetPack 6.1 on Orin, one GPU of compute capability 8.7",
            ("W4A16_AWQ", "W8A8_SQ_PER_CHANNEL"),
            fp8=False,
            several_gpus=False,
            mixed=False,
            tall_scales=True,
            cross_attention=False,
        ),
    )
}
DEFAULT_RELEASE = "1.2"


def find_release(name: str) -> Release:
    """Return the release called `name`, or raise UsageError."""
    if name not in RELEASES:
        raise UsageError(
            f"checkpoints are not written for TensorRT-LLM '{name}'", hint=did_you_mean(name, RELEASES)
        )
    return RELEASES[name]
