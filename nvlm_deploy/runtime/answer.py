"""One row of a batch while it is being answered: tokens, text, stop strings."""

from __future__ import annotations

from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.runtime.result import FinishReason, Request
from nvlm_deploy.runtime.sampling import Logits, Sampler, top_logits


class Answer:
    """Collects one request's tokens and releases text that no stop string can still take back."""

    def __init__(self, request: Request, tokenizer: Tokenizer, max_new_tokens: int) -> None:
        self._request = request
        self._sampler = Sampler(request.sampling)
        self._decoder = tokenizer.stream()
        self._eos_id = tokenizer.eos_id
        self._max_new_tokens = max_new_tokens
        self._released = 0
        self.text = ""
        self.output_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.first_token_top: tuple[tuple[int, float], ...] = ()

    @property
    def end_id(self) -> int:
        """The token that ends the answer."""
        return self._eos_id

    @property
    def last_id(self) -> int:
        """The token that goes into the next step; the end-of-turn token for finished rows."""
        return self._eos_id if self.finish_reason else self.output_ids[-1]

    def accept(self, logits: Logits) -> str:
        """Choose the next token from `logits`, float32 [vocabulary]; return the text that is now certain."""
        if self.finish_reason:
            return ""
        if not self.output_ids and self._request.top_logits:
            self.first_token_top = top_logits(logits, self._request.top_logits)
        return self.accept_token(self._sampler.choose(logits))

    def accept_token(self, token: int) -> str:
        """Take a token that was chosen elsewhere; return the text that is now certain."""
        if token == self._eos_id:
            return self.end()
        self.output_ids.append(token)
        self.text += self._decoder.push(token)
        if self._cut_at_stop_string():
            return self._release(len(self.text))
        if len(self.output_ids) == self._max_new_tokens:
            return self._finish("length", self._decoder.finish())
        return self._release(len(self.text) - self._held_back())

    def end(self) -> str:
        """End the answer as the end of the turn does; return the rest of its text."""
        return self._finish("stop", self._decoder.finish())

    def _finish(self, reason: FinishReason, rest: str) -> str:
        self.finish_reason = reason
        self.text += rest
        self._cut_at_stop_string()
        return self._release(len(self.text))

    def _cut_at_stop_string(self) -> bool:
        found = [place for stop in self._request.stop if (place := self.text.find(stop)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.finish_reason = "stop"
        return bool(found)

    def _held_back(self) -> int:
        """Length of the longest end of the text that may become a stop string."""
        lengths = (
            n for stop in self._request.stop for n in range(1, len(stop)) if self.text.endswith(stop[:n])
        )
        return max(lengths, default=0)

    def _release(self, end: int) -> str:
        piece = self.text[self._released : end]
        self._released = max(self._released, end)
        return piece
