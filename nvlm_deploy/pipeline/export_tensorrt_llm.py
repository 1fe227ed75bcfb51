"""Stage: checkpoint -> TensorRT-LLM checkpoint of its language model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy import __version__
from nvlm_deploy.errors import UsageError, did_you_mean
from nvlm_deploy.export.tensorrt_llm import (
    CONFIG_NAME,
    DEFAULT_RELEASE,
    DTYPES,
    QUANT_CONFIG_NAME,
    RECORD_NAME,
    LanguageSource,
    Layout,
    Parallel,
    RankFiles,
    Release,
    find_release,
    model_config,
    plan_layout,
)
from nvlm_deploy.pipeline.atomic import check_output, require_space
from nvlm_deploy.pipeline.export import ExportRequest
from nvlm_deploy.pipeline.resumable import resumable_directory, unfinished_bytes
from nvlm_deploy.progress import ProgressCallback, no_progress

STAGE = "export"
DEFAULT_DTYPE = "bfloat16"
EMBEDDINGS = ("split", "replicated")
# For `trtllm-build --model_cls_file`, beside the ranks of NVLM-X and NVLM-H.
CLASS_FILE = "nvlm_mllama.py"
_CLASS_SOURCE = Path(__file__).parents[1] / "backends" / "tensorrt_llm" / CLASS_FILE
_OPTIONS: dict[str, Any] = {
    "tp": 1,
    "pp": 1,
    "version": DEFAULT_RELEASE,
    "dtype": DEFAULT_DTYPE,
    "embedding": EMBEDDINGS[0],
}


@dataclass(frozen=True, slots=True)
class TensorRtLlmPlan:
    """A TensorRT-LLM checkpoint that can be written. `config` and `by_layer` are its JSON files."""

    checkpoint: Path
    output: Path
    release: Release
    layout: Layout
    dtype: str
    files: RankFiles
    config: dict[str, Any]
    by_layer: dict[str, Any] | None

    @property
    def notes(self) -> tuple[str, ...]:
        notes = []
        width, padded = self.layout.language.intermediate_size, self.layout.intermediate
        if padded != width:
            notes.append(f"the MLPs are padded with zeros from {width:,} to {padded:,}")
        if any(form.storage.format == "int4" for forms in self.layout.forms for form in forms.values()):
            notes.append(f"TensorRT-LLM rounds the scales of groups to {self.dtype} when it loads them")
        if self.layout.cross is not None:
            notes.append(f"trtllm-build needs --model_cls_file {CLASS_FILE}; not yet verified on a GPU")
        return tuple(notes)

    def rows(self) -> Sequence[tuple[str, str]]:
        parallel, quantization = self.layout.parallel, self.config["quantization"]
        cache = quantization["kv_cache_quant_algo"] or "16 bits"
        return [
            ("checkpoint", str(self.checkpoint)),
            ("output", str(self.output)),
            ("for", self.release.description),
            (
                "weights",
                f"{quantization['quant_algo'] or '16 bits'}; the rest {self.dtype}; KV cache {cache}",
            ),
            ("ranks", f"{parallel.world_size}: TP {parallel.tp} x PP {parallel.pp}"),
            (
                "inner width",
                f"{self.layout.language.intermediate_size:,}, stored {self.layout.intermediate:,}",
            ),
            ("size", f"{self.files.num_bytes:,} bytes"),
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": "trtllm",
            "checkpoint": str(self.checkpoint),
            "output": str(self.output),
            "version": self.release.name,
            "config": self.config,
            "quant_cfg": self.by_layer,
            "intermediate_size": self.layout.language.intermediate_size,
            "files": self.files.sizes(),
            "disk_needed": self.files.num_bytes,
            "notes": list(self.notes),
        }

    def run(self, progress: ProgressCallback = no_progress) -> dict[str, Any]:
        """Write the checkpoint; a run that was stopped goes on behind its last finished layer.

        Raises:
            UsageError: the output exists, or another run is writing it now.
            NvlmError: the disk is full, or a tensor cannot be carried over.
        """
        began = time.perf_counter()
        record = self._record()
        with resumable_directory(self.output, {**record, "config": self.config}) as work:
            self.files.create(work.result)
            done, total = 0, self.files.num_bytes
            progress(STAGE, 0, total)
            for number, (step, rules) in enumerate(self.layout.steps()):
                note = work.finished(number)
                if note is None:
                    note = {"step": step, "bytes": 0}
                    for size in self.files.write(work.result, rules):
                        note["bytes"] += size
                        progress(STAGE, done + note["bytes"], total)
                    work.finish(number, note)
                done += note["bytes"]
            _write_json(work.result / CONFIG_NAME, self.config)
            if self.by_layer is not None:
                _write_json(work.result / QUANT_CONFIG_NAME, self.by_layer)
            _write_json(work.result / RECORD_NAME, record)
            if self.layout.cross is not None:
                shutil.copyfile(_CLASS_SOURCE, work.result / CLASS_FILE)
            progress(STAGE, total, total)
        return {**self.to_dict(), "seconds": time.perf_counter() - began}

    def _record(self) -> dict[str, Any]:
        """What `export.json` says: what was exported, and what config.json cannot tell."""
        return {
            "format": "trtllm",
            "version": self.release.name,
            "checkpoint_fingerprint": self.files.source.shards.fingerprint(),
            "intermediate_size": self.layout.language.intermediate_size,
            "tool_versions": {"nvlm-deploy": __version__},
        }


def plan_tensorrt_llm(request: ExportRequest) -> TensorRtLlmPlan:
    """Check a request against the checkpoint and the release; writes nothing.

    Args:
        request: with the options `tp`, `pp`, `version`, `dtype` and `embedding`.

    Raises:
        UsageError: heads or layers cannot be divided so, an unknown name, an output that exists.
        UnsuitableError: the release cannot carry the checkpoint, or the disk has too little room.
        NvlmError: the checkpoint is not in order.
    """
    check_output(request.output)
    given = {name: value for name, value in request.options.items() if value is not None}
    options = {**_OPTIONS, **given}
    release = find_release(options["version"])
    for name, known in (("dtype", DTYPES), ("embedding", EMBEDDINGS)):
        if options[name] not in known:
            hint = did_you_mean(options[name], known)
            raise UsageError(f"--{name} {options[name]} is none of {', '.join(known)}", hint=hint)
    source = LanguageSource.open(request.checkpoint)
    parallel = Parallel(options["tp"], options["pp"])
    layout = plan_layout(source, release, parallel, options["embedding"] == "split")
    config, by_layer = model_config(layout, options["dtype"], release)
    files = RankFiles(source, layout, DTYPES[options["dtype"]], str(request.checkpoint))
    needed = files.num_bytes - unfinished_bytes(request.output)
    require_space(request.output, needed, "the files of the TensorRT-LLM checkpoint")
    return TensorRtLlmPlan(
        request.checkpoint, request.output, release, layout, options["dtype"], files, config, by_layer
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
