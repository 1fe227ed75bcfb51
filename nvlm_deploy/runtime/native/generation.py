"""One request to the native runtime: made of a `Request`, answered, ended from any thread."""

from __future__ import annotations

import ctypes
import json
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess.messages import Message, gather_images
from nvlm_deploy.runtime.native import abi
from nvlm_deploy.runtime.native.images import Images
from nvlm_deploy.runtime.native.library import Cancellation, Opened
from nvlm_deploy.runtime.result import Request

_LARGEST_SEED = 2**64 - 1
_LARGEST_COUNT = 2**63 - 1


class NativeRequest:
    """nvlm_request of a `Request`; keeps what it points to."""

    def __init__(self, request: Request, cancellation: Cancellation) -> None:
        """Check and convert.

        Raises:
            UsageError: images that do not fit the messages, or a text that C cannot take.
            NvlmError: an image that Pillow is asked for and cannot read.
        """
        sampling = request.sampling
        if sampling.seed > _LARGEST_SEED:
            raise UsageError(f"seed is {sampling.seed}; the native runtime takes at most {_LARGEST_SEED}")
        self.images = Images(gather_images(request.prompt, request.images))
        self._cancellation = cancellation
        stop = [_c_text(text, "stop") for text in request.stop]
        self._stop = (ctypes.c_char_p * len(stop))(*stop)
        self.structure = abi.Request(
            **_prompt(request.prompt),
            images=self.images.array,
            image_count=len(self.images),
            max_new_tokens=min(request.max_new_tokens, _LARGEST_COUNT),
            stop=self._stop,
            stop_count=len(stop),
            temperature=sampling.temperature,
            top_k=min(sampling.top_k, _LARGEST_COUNT),
            top_p=sampling.top_p,
            seed=sampling.seed,
            top_logits=min(request.top_logits, _LARGEST_COUNT),
            cancellation=cancellation.handle,
        )


class Generation:
    """A request that is answered once: whole by `result`, or piece by piece by `events`."""

    def __init__(self, engine: Opened, request: Request, cancellation: Cancellation) -> None:
        """Check and convert; see `NativeRequest`."""
        self._engine, self.cancellation = engine, cancellation
        self._request = NativeRequest(request, cancellation)

    @property
    def images(self) -> Images:
        """What the request has seen."""
        return self._request.images

    def result(self) -> dict[str, Any]:
        """Answer in this thread, which Ctrl-C does not reach; nvlm_result_json as a dictionary.

        Raises:
            NvlmError: the request failed.
        """
        return self._answer("nvlm_generate")

    def events(self) -> Iterator[str | dict[str, Any]]:
        """Answer in a thread of its own; the pieces as they come, then what `result` returns.

        Whoever stops reading, also by Ctrl-C, ends the request.

        Raises:
            NvlmError: the request failed.
        """
        events: queue.SimpleQueue[bytes | dict[str, Any] | BaseException] = queue.SimpleQueue()
        thread = threading.Thread(target=self._stream, args=(events,), name="nvlm-generate")
        thread.start()
        try:
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event.decode() if isinstance(event, bytes) else event
                if isinstance(event, dict):
                    return
        finally:
            self.cancellation.cancel()
            thread.join()

    def _stream(self, events: queue.SimpleQueue[bytes | dict[str, Any] | BaseException]) -> None:
        def take(text: int, length: int, _: int | None) -> int:
            events.put(ctypes.string_at(text, length))
            # A program that ends waits for this thread, and nothing else tells it that nobody reads on.
            return 0 if threading.main_thread().is_alive() else 1

        try:
            events.put(self._answer("nvlm_generate_stream", abi.TextCallback(take), None))
        except BaseException as error:
            events.put(error)

    def _answer(self, function: str, *callback: Any) -> dict[str, Any]:
        result = ctypes.c_void_p()
        request = ctypes.byref(self._request.structure)
        self._engine.call(function, request, *callback, ctypes.byref(result))
        try:
            answer: dict[str, Any] = json.loads(self._engine.library.text("nvlm_result_json", result))
            return answer
        finally:
            self._engine.library.functions.nvlm_result_free(result)


def _prompt(prompt: str | Sequence[Message]) -> dict[str, bytes]:
    if isinstance(prompt, str):
        return {"prompt": _c_text(prompt, "the prompt")}
    messages = [{**message, "content": _without_sources(message["content"])} for message in prompt]
    return {"messages": json.dumps(messages).encode()}


def _without_sources(content: Any) -> Any:
    """Parts of a message as JSON can have them: their images are passed beside."""
    if isinstance(content, str):
        return content
    return [{key: value for key, value in part.items() if key != "image"} for part in content]


def _c_text(text: str, name: str) -> bytes:
    if "\0" in text:
        raise UsageError(f"{name} has a zero byte, which the native runtime cannot take", hint="remove it")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is no Unicode text: {error}") from None
