"""Stage: checkpoint -> the directory that a server opens; and holding such a directory against its loader."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.checkpoint.safetensors_file import build_header, read_header, write_elements
from nvlm_deploy.checkpoint.shards import INDEX_NAME, ShardSet
from nvlm_deploy.checkpoint.writer import copy_companion_files
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.export.serving import ServingReport, check_directory, check_unified, find_loader
from nvlm_deploy.export.serving.directory import decoder_config, decoder_name, served_config
from nvlm_deploy.pipeline.atomic import atomic_directory, check_output, require_space
from nvlm_deploy.pipeline.export import ExportRequest
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.checkpoint import open_weights
from nvlm_deploy.quantization.unified import QUANT_CONFIG_NAME

STAGE = "export"
# The loaders that a format is for; none: what this project and ModelOpt's own reader take.
LOADERS_OF: Mapping[str, tuple[str, ...]] = {
    "hf": (),
    "vllm": ("vllm",),
    "hf-decoder": ("sglang", "tensorrt_llm"),
}
_DECODER = "hf-decoder"


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """A directory that can be written. `configs` are its JSON files; `tensors` lead from new to old names.

    Whole checkpoints share their shards with the source where the file system can: nothing is copied.
    """

    checkpoint: Path
    output: Path
    format: str
    configs: Mapping[str, Any]
    shards: ShardSet
    tensors: Mapping[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """See `ExportPlan.notes`."""
        if self.format == _DECODER:
            return ("the decoder alone: the server answers text, and knows nothing of images",)
        return ("shards are linked, not copied, where the file system can",)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(self.shards.infos[source].num_bytes for source in self.tensors.values())

    def rows(self) -> Sequence[tuple[str, str]]:
        """See `ExportPlan.rows`."""
        quantization = self.configs.get(QUANT_CONFIG_NAME, {}).get("quantization", {})
        return [
            ("checkpoint", str(self.checkpoint)),
            ("output", str(self.output)),
            ("format", self.format),
            ("weights", quantization.get("quant_algo", "16 bits")),
            ("tensors", f"{len(self.tensors):,}, {self.num_bytes / 1e9:.2f} GB"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """See `ExportPlan.to_dict`."""
        return {
            "checkpoint": str(self.checkpoint),
            "output": str(self.output),
            "format": self.format,
            "tensors": len(self.tensors),
            "bytes": self.num_bytes,
            "config": self.configs["config.json"],
        }

    def run(self, progress: ProgressCallback = no_progress) -> dict[str, Any]:
        """Write the directory, whole or not at all.

        Raises:
            UsageError: the output exists.
            NvlmError: the disk is full.
        """
        began = time.perf_counter()
        with atomic_directory(self.output) as work:
            copy_companion_files(self.checkpoint, work)
            for name, config in self.configs.items():
                (work / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            self._write_decoder(work, progress) if self.format == _DECODER else self._link(work)
            files = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        return {**self.to_dict(), "files": files, "seconds": time.perf_counter() - began}

    def _link(self, work: Path) -> None:
        for name in sorted({info.shard for info in self.shards.infos.values()}):
            try:
                os.link(self.checkpoint / name, work / name)
            except OSError:
                shutil.copyfile(self.checkpoint / name, work / name)
        if (self.checkpoint / INDEX_NAME).exists():
            shutil.copyfile(self.checkpoint / INDEX_NAME, work / INDEX_NAME)

    def _write_decoder(self, work: Path, progress: ProgressCallback) -> None:
        """One tensor at a time, in the shards where they were."""
        done, total = 0, self.num_bytes
        weight_map = {name: self.shards.infos[source].shard for name, source in self.tensors.items()}
        for shard in sorted(set(weight_map.values())):
            names = [name for name, place in weight_map.items() if place == shard]
            infos = {name: self.shards.infos[self.tensors[name]] for name in names}
            # Wider dtypes first keep every tensor aligned to its own element size.
            names.sort(key=lambda name: -infos[name].dtype.itemsize)
            header = build_header([(name, infos[name].dtype, tuple(infos[name].shape)) for name in names])
            with (work / shard).open("wb") as file:
                file.write(header)
                file.truncate(len(header) + sum(infos[name].num_bytes for name in names))
            places = read_header(work / shard).tensors
            for name in names:
                write_elements(work / shard, places[name], self.shards.read(self.tensors[name]))
                done += infos[name].num_bytes
                progress(STAGE, done, total)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (work / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan_serving(name: str, request: ExportRequest) -> ServingPlan:
    """Check a request for one of the formats of `LOADERS_OF`; writes nothing.

    Raises:
        UsageError: an option of another format, or an output that exists.
        UnsuitableError: the disk has too little room.
        NvlmError: the checkpoint is not in order.
    """
    check_output(request.output)
    foreign = [key for key, value in request.options.items() if value is not None]
    if foreign:
        raise UsageError(f"--{foreign[0]} is no option of the format {name}", hint="it is one of trtllm")
    weights = open_weights(request.checkpoint)
    shards = ShardSet(request.checkpoint)
    config = json.loads((request.checkpoint / "config.json").read_text(encoding="utf-8"))
    tensors = {key: key for key in shards.infos}
    if name == _DECODER:
        configs = decoder_config(config, weights)
        renamed = {key: decoder_name(key) for key in shards.infos}
        tensors = {new: old for old, new in renamed.items() if new is not None}
    else:
        configs = served_config(request.checkpoint, config, adapted=name == "vllm")
    plan = ServingPlan(request.checkpoint, request.output, name, configs, shards, tensors)
    if name == _DECODER:
        require_space(request.output, plan.num_bytes, "the decoder's checkpoint")
    return plan


def plan_hf(request: ExportRequest) -> ServingPlan:
    """The whole checkpoint as it is."""
    return plan_serving("hf", request)


def plan_vllm(request: ExportRequest) -> ServingPlan:
    """The whole checkpoint with the config that vLLM answers rightly with."""
    return plan_serving("vllm", request)


def plan_decoder(request: ExportRequest) -> ServingPlan:
    """The decoder as a checkpoint of its own class."""
    return plan_serving(_DECODER, request)


def check_export(name: str, directory: Path) -> tuple[ServingReport, ...]:
    """Hold `directory` against what the loaders of a format read: one report each.

    Raises:
        UsageError: the format has no checker.
        NvlmError: the directory is no checkpoint at all.
    """
    if name not in LOADERS_OF:
        known = ", ".join(LOADERS_OF)
        raise UsageError(f"the format {name} has no --check", hint=f"formats with one: {known}")
    if not directory.is_dir():
        raise NvlmError(f"{directory} is no directory")
    loaders = LOADERS_OF[name]
    if not loaders:
        return (check_unified(directory),)
    return tuple(check_directory(directory, find_loader(loader)) for loader in loaders)


def require_one(reports: Sequence[ServingReport]) -> None:
    """Raise if there are reports and no server can open the directory.

    Raises:
        VerificationError: names the first server's findings.
    """
    if reports and all(report.errors for report in reports):
        reports[0].require_ok()
