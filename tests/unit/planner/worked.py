"""The worked table of docs/planning.md: NVLM-D-72B on some devices."""

from __future__ import annotations

from nvlm_deploy.planner import DevicePlan

CASES = (
    ("int4-awq", "jetson-agx-orin-64gb", 1),
    ("int4-awq-vit-int8", "jetson-agx-orin-64gb", 1),
    ("nvfp4", "jetson-agx-thor-128gb", 1),
    ("int4-awq", "a100-80gb", 1),
    ("int4-awq", "a100-80gb", 2),
    ("int4-awq", "l40s-48gb", 2),
    ("int4-awq", "h100-80gb", 1),
    ("fp8", "h100-80gb", 1),
    ("fp8", "h100-80gb", 2),
    ("fp8", "h200-141gb", 1),
    ("nvfp4", "b200-180gb", 1),
    ("nvfp4", "rtx-pro-6000-96gb", 1),
)
HEADINGS = (
    "recipe",
    "target",
    "TP",
    "weights",
    "engine",
    "memory per GPU",
    "longest context",
    "TTFT, 1 tile",
    "TTFT, 7 tiles",
    "tokens/s",
)


def row(plan: DevicePlan) -> tuple[str, ...]:
    """One plan as a row; sizes in GB (10^9 bytes), times in seconds."""
    usable = plan.target.usable_bytes
    assert usable is not None
    longest = plan.largest.context if plan.largest else None
    ttft, decode = plan.prediction.ttft_ms, plan.prediction.decode_tokens_per_s
    assert decode is not None
    fits = "" if plan.fits else ": no"
    return (
        f"`{plan.recipe.name}`",
        f"`{plan.target.name}`",
        str(plan.parallel.tp),
        f"{plan.weights.total / 1e9:.1f}",
        f"{plan.engine.total / 1e9:.1f}",
        f"{plan.memory.total / 1e9:.1f} of {usable / 1e9:.1f}{fits}",
        "-" if longest is None else f"{longest:,}",
        f"{ttft[1] / 1000:.2f}",
        f"{ttft[7] / 1000:.2f}",
        f"{decode:.1f}",
    )
