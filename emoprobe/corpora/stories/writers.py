"""Who writes: a live model, the probed one or another, or whatever answers at an OpenAI-compatible address."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from emoprobe.corpora.stories.prompts import Request
from emoprobe.errors import InputError
from emoprobe.models.live import LiveModel
from emoprobe.redaction import redacted


class Writer(Protocol):
    """What writes: its `name` goes into the record of every text."""

    @property
    def name(self) -> str:
        """Who wrote."""

    def __call__(self, requests: Sequence[Request], seed: int) -> list[str]:
        """Return one reply to each request; the same seed and requests give the same replies where the writer can do that."""


class ModelWriter:
    """Let a live model write: to instructions where its tokenizer has a chat template, else going on from a beginning."""

    def __init__(self, model: LiveModel, *, max_new_tokens: int = 400, temperature: float = 1.0) -> None:
        self.model = model
        self.options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "do_sample": True,
            "temperature": temperature,
        }
        self._instructed = bool(getattr(model.tokenizer, "chat_template", None))

    @property
    def name(self) -> str:
        """The model's name and fingerprint."""
        return f"{self.model.name} ({self.model.fingerprint()})"

    def __call__(self, requests: Sequence[Request], seed: int) -> list[str]:
        """Write one batch."""
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            written = self.model.generate([self._prompt(request) for request in requests], **self.options)
        replies = [written] if isinstance(written, str) else written
        if self._instructed:
            return replies
        return [request.opening() + reply for request, reply in zip(requests, replies, strict=True)]

    def _prompt(self, request: Request) -> str:
        if self._instructed:
            return self.model.chat_text([{"role": "user", "content": request.instruction()}]).text
        return request.beginning()


class EndpointWriter:
    """Let a chat model behind an OpenAI-compatible address write, one request at a time, over `huggingface_hub`'s client.

    `url` is the address up to and with the version (http://localhost:8000/v1), `key` its token: the prompts go to that address
    and nowhere else, and neither the token nor a password in the address is written down. A request that fails is tried
    again `retries` times, each time after twice as long.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        max_new_tokens: int = 1500,
        temperature: float = 1.0,
        retries: int = 4,
        wait: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        from huggingface_hub import InferenceClient

        self._client = InferenceClient(base_url=url, api_key=key or "none", timeout=300)
        self._model = model
        self._shown = redacted(url)  # what is logged beside every text
        self._options: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature}
        self._retries, self._wait, self._sleep = retries, wait, sleep

    @property
    def name(self) -> str:
        """The model's name and where it is."""
        return f"{self._model} at {self._shown}"

    def __call__(self, requests: Sequence[Request], seed: int) -> list[str]:
        """Write one reply after another."""
        return [self._reply(request, seed + place) for place, request in enumerate(requests)]

    def _reply(self, request: Request, seed: int) -> str:
        messages = [{"role": "user", "content": request.instruction()}]
        for attempt in range(self._retries + 1):
            try:
                answer = self._client.chat_completion(messages, model=self._model, seed=seed, **self._options)
                return str(answer.choices[0].message.content or "")
            except Exception as error:  # the client's errors are many, and so are its transports'
                if attempt == self._retries:
                    reason = redacted(" ".join([type(error).__name__, *str(error).splitlines()[:1]]))
                    raise InputError(
                        f"{self._shown} does not answer ({reason}): "
                        "check the address, the model's name and the key; what is written so far is kept"
                    ) from error
                self._sleep(self._wait * 2**attempt)
        raise AssertionError("unreachable")
