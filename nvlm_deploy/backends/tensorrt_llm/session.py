"""TensorRT-LLM's executor as an `InflightSession`. Not yet run on a GPU.

With more than one rank, every rank runs the same program under mpirun. The first one is the leader: it takes
requests and hands each with its prompt table to the others, which only take part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.protocol import TokenRequest, TokenUpdate
from nvlm_deploy.backends.tensorrt_llm import adapter
from nvlm_deploy.backends.tensorrt_llm.interface import Interface
from nvlm_deploy.backends.tensorrt_llm.prompt_table import embedding_table
from nvlm_deploy.backends.tensorrt_llm.requests import EngineFacts, assemble, kv_cache_arguments
from nvlm_deploy.errors import NvlmError, UnsuitableError

# One wait for a token is no longer, so that an interruption is noticed.
_WAIT = timedelta(seconds=1)


class ExecutorSession:
    """An engine directory that is open in this process."""

    def __init__(self, directory: Path, facts: EngineFacts) -> None:
        """Open `config.json` and `rank{N}.engine` in `directory`.

        Raises:
            UnsuitableError: TensorRT-LLM is not here or of another release, or memory does not suffice.
            NvlmError: the engine cannot be opened.
        """
        self._facts = facts
        self._interface: Interface = adapter.require_interface()
        self._api = adapter.executor_api()
        self._world_size = world_size(directory)
        rank = adapter.mpi_rank() if self._world_size > 1 else 0
        settings = self._api.ExecutorConfig(
            max_beam_width=1,
            kv_cache_config=self._api.KvCacheConfig(**self._kv_cache(directory, rank)),
            enable_chunked_context=facts.chunked_context,
        )
        try:
            self._executor = self._api.Executor(directory, self._api.ModelType.DECODER_ONLY, settings)
        except RuntimeError as error:
            raise NvlmError(
                f"{directory} cannot be opened: {str(error).splitlines()[0]}",
                hint="engines run on the device and with the TensorRT-LLM that built them: compile the kit",
            ) from error

    @property
    def context_length(self) -> int:
        """Tokens per request that the engine was built for."""
        return self._facts.context

    def submit(self, request: TokenRequest) -> int:
        """See `InflightSession.submit`."""
        parts = assemble(request, self._facts, self._interface)
        table: dict[str, Any] = {}
        if request.visual_tokens is not None:
            settings: dict[str, Any] = {"embedding_table": self._table(request)}
            if parts.extra_ids is not None:
                settings["input_token_extra_ids"] = parts.extra_ids
            table["prompt_tuning_config"] = self._api.PromptTuningConfig(**settings)
        made = self._api.Request(
            **parts.request,
            sampling_config=self._api.SamplingConfig(**parts.sampling),
            output_config=self._api.OutputConfig(**parts.output),
            **table,
        )
        return int(self._executor.enqueue_request(made))

    def next_update(self, number: int) -> TokenUpdate:
        """See `InflightSession.next_update`."""
        responses: list[Any] = []
        while not responses:
            responses = list(self._executor.await_responses(number, _WAIT))
        return merged(responses)

    def cancel(self, number: int) -> None:
        """See `InflightSession.cancel`."""
        self._executor.cancel_request(number)

    def follow(self) -> None:
        """Take part until the leader closes; for ranks that take no requests."""
        self._executor.shutdown()

    def close(self) -> None:
        """See `InflightSession.close`."""
        self._executor.shutdown()

    def _table(self, request: TokenRequest) -> Any:
        assert request.visual_tokens is not None, "only requests with images have a table"
        table = embedding_table(request.visual_tokens, self._facts.dtype)
        # Over several ranks it goes through the host anyway, so that each gets a copy on its own device.
        return table.cuda() if self._world_size == 1 else table

    def _kv_cache(self, directory: Path, rank: int) -> dict[str, Any]:
        import torch

        # Ranks are spread over the GPUs of a machine in order.
        free, _ = torch.cuda.mem_get_info(rank % torch.cuda.device_count())
        weights = (directory / f"rank{rank}.engine").stat().st_size
        if free <= weights:
            raise UnsuitableError(
                f"the engine has {weights / 1e9:.2f} GB, and {free / 1e9:.2f} GB of GPU memory are free",
                hint="end what else uses the GPU",
            )
        return kv_cache_arguments(self._facts, self._interface, free - weights)


def open_session(directory: Path, llm: Mapping[str, Any], tokens_per_tile: int) -> ExecutorSession:
    """Open the engine of a bundle, as its manifest's section `llm` describes it.

    Raises:
        UnsuitableError, NvlmError: see `ExecutorSession`.
    """
    return ExecutorSession(directory / llm["engine"], EngineFacts.of(llm, tokens_per_tile))


def take_part(directory: Path, llm: Mapping[str, Any], tokens_per_tile: int) -> None:
    """Under mpirun, take part until the leader closes, and end the process; return on the leader itself."""
    if world_size(directory / llm["engine"]) == 1 or adapter.mpi_rank() == 0:
        return
    open_session(directory, llm, tokens_per_tile).follow()
    raise SystemExit(0)


def world_size(directory: Path) -> int:
    """Number of ranks of an engine directory.

    Raises:
        NvlmError: its `config.json` is missing or no engine's.
    """
    path = directory / "config.json"
    try:
        mapping: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["pretrained_config"][
            "mapping"
        ]
        return int(mapping["tp_size"]) * int(mapping["pp_size"])
    except (OSError, ValueError, KeyError) as error:
        raise NvlmError(f"{path} describes no TensorRT-LLM engine: {error}") from None


def merged(responses: list[Any]) -> TokenUpdate:
    """Join an executor's responses to one request, each with the tokens since the one before.

    Raises:
        NvlmError: one of them is an error.
    """
    tokens: list[int] = []
    log_probs: list[float] = []
    final = False
    for response in responses:
        if response.has_error():
            raise NvlmError(f"TensorRT-LLM failed on a request: {response.error_msg}")
        result = response.result
        tokens.extend(result.output_token_ids[0])
        if result.log_probs:
            log_probs.extend(result.log_probs[0])
        final = final or bool(result.is_final)
    return TokenUpdate(tuple(tokens), final, tuple(log_probs))
