"""The plan of an engine on a device: sizes, memory, speed, and whether it fits; from the config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.target import GIB, Target
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.planner.build import BuildMemory, LoadMemory, build_memory, load_memory
from nvlm_deploy.planner.files import FileBytes, bundle_files
from nvlm_deploy.planner.largest import Largest, largest_that_fits
from nvlm_deploy.planner.memory import RankMemory, kv_per_token, rank_memory
from nvlm_deploy.planner.roofline import NO_PREDICTION, Prediction, predict
from nvlm_deploy.planner.shards import Parallel
from nvlm_deploy.planner.sizes import sum_sizes
from nvlm_deploy.planner.storage import PartBytes
from nvlm_deploy.planner.workload import Workload, prompt_tokens, shortest_context
from nvlm_deploy.quantization.plan import QuantizationPlan


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What an engine is, needs and reaches on a device.

    weights: as the recipe stores them; engine: as the backend's engine keeps them, every part once.
    kv_bytes_per_token: on all ranks; what the fullest rank has of the workload is `memory.kv_cache`.
    fits: nothing that is known speaks against it; `reasons` say what does. hints: what to change, computed.
    """

    config: NvlmConfig
    recipe: Recipe
    target: Target
    parallel: Parallel
    load: Workload
    weights: PartBytes
    engine: PartBytes
    files: FileBytes
    kv_format: str
    kv_bytes_per_token: int
    memory: RankMemory
    build: BuildMemory
    opening: LoadMemory
    largest: Largest | None
    prediction: Prediction
    reasons: tuple[str, ...]
    hints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.reasons

    @property
    def kv_bytes(self) -> int:
        """Keys and values of the whole workload, on all ranks."""
        return self.kv_bytes_per_token * self.load.context * self.load.batch

    def require_fit(self) -> None:
        """Refuse a plan that does not fit.

        Raises:
            UnsuitableError: with the first reason, and with what would fit.
        """
        if not self.fits:
            raise UnsuitableError(self.reasons[0], hint="; ".join(self.hints) or None)

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON; all sizes in bytes."""
        efficiency = self.target.efficiency
        return {
            "fits": self.fits,
            "reasons": list(self.reasons),
            "hints": list(self.hints),
            "variant": self.config.variant,
            "recipe": self.recipe.model_dump(mode="json"),
            "target": self.target.model_dump(mode="json"),
            "backend": self.target.backend,
            "tp": self.parallel.tp,
            "pp": self.parallel.pp,
            "max_tiles": self.load.tiles,
            "encoded_tiles": self.load.encoded_tiles,
            "context": self.load.context,
            "max_batch": self.load.batch,
            "prompt_tokens": prompt_tokens(self.config, self.load.encoded_tiles),
            "weights_bytes": self.weights.to_dict(),
            "engine_bytes": self.engine.to_dict(),
            "disk_bytes": self.files.total,
            "files_bytes": self.files.to_dict(),
            "kv_format": self.kv_format,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes": self.kv_bytes,
            "memory": {
                **self.memory.to_dict(),
                "total": self.memory.total,
                "usable": self.target.usable_bytes,
            },
            "build": self.build.to_dict(),
            "load": self.opening.to_dict(),
            "largest": None if self.largest is None else self.largest.to_dict(),
            "predicted": {
                **self.prediction.to_dict(),
                "efficiency": {**efficiency.model_dump(), "source": self.target.sources["efficiency"]},
            },
            "notes": list(self.notes),
        }


def plan_on_device(
    config: NvlmConfig,
    quantization: QuantizationPlan,
    recipe: Recipe,
    target: Target,
    load: Workload,
    parallel: Parallel,
    refusals: tuple[str, ...] = (),
    tokenizer: int | None = None,
) -> DevicePlan:
    """Plan one engine. `refusals` are reasons that are known already: nothing is predicted beside one.

    tokenizer: bytes of the checkpoint's tokenizer.json, if there is one.
    """
    sizes = sum_sizes(config, quantization, target, parallel)
    memory = rank_memory(config, sizes, target, parallel, load)
    reasons = [*refusals, *_too_much(target, memory, parallel), *_too_short(config, load)]
    prediction = NO_PREDICTION if refusals else predict(config, quantization, sizes, target, parallel, load)
    opening = load_memory(sizes, target, memory)
    build = build_memory(sizes, target, memory)
    largest = None
    if not refusals and target.usable_bytes is not None:
        largest = largest_that_fits(config, sizes, target, parallel, load)
    return DevicePlan(
        config=config,
        recipe=recipe,
        target=target,
        parallel=parallel,
        load=load,
        weights=sizes.recipe,
        engine=sizes.engine,
        files=bundle_files(quantization, config, target.backend, load.context, tokenizer),
        kv_format=sizes.kv_format,
        kv_bytes_per_token=kv_per_token(config, sizes, parallel),
        memory=memory,
        build=build,
        opening=opening,
        largest=largest,
        prediction=prediction,
        reasons=tuple(reasons),
        notes=_notes(target, memory, build, opening, prediction),
    )


def _too_much(target: Target, memory: RankMemory, parallel: Parallel) -> list[str]:
    usable = target.usable_bytes
    if usable is None or memory.total <= usable:
        return []
    who = "the fullest rank" if parallel.ranks > 1 else "the engine"
    if memory.weights > usable:
        what = f"its weights alone are {memory.weights / GIB:.1f} GiB"
    else:
        what = (
            f"{memory.weights / GIB:.1f} GiB of weights, {memory.kv_cache / GIB:.1f} GiB of keys and values"
        )
    return [
        f"{who} needs {memory.total / GIB:.1f} GiB, and {target.name} has {usable / GIB:.1f} GiB usable: "
        + what
    ]


def _too_short(config: NvlmConfig, load: Workload) -> list[str]:
    needed = shortest_context(config, load.encoded_tiles)
    if load.context >= needed:
        return []
    return [
        f"a context of {load.context:,} tokens cannot hold an image of {load.encoded_tiles} tiles "
        f"({needed:,} tokens)"
    ]


def _notes(
    target: Target, memory: RankMemory, build: BuildMemory, opening: LoadMemory, prediction: Prediction
) -> tuple[str, ...]:
    notes = []
    if target.usable_bytes is None:
        notes.append(
            f"the memory of {target.name} is not known: the engine needs {memory.total / GIB:.1f} GiB; "
            "--set target.memory.usable_gib=N compares"
        )
    if prediction.missing:
        keys = " ".join(f"--set target.{key}=N" for key in prediction.missing)
        notes.append(f"no speed is predicted without figures of the machine: {keys}")
    if build.reason is not None:
        notes.append(build.reason)
    if opening.mapped_only:
        notes.append(
            "opening it needs its file mapped (--use_mmap of TensorRT-LLM 0.12-jetson): read whole, another "
            f"{opening.host_bytes / GIB:.1f} GiB of the shared memory would be taken"
        )
    return tuple(notes)
