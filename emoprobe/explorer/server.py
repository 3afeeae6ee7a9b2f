"""The explorer's web server: one page, four questions, and what keeps everybody else out.

FastAPI rather than Gradio: nothing is fetched from or reported to anywhere, the page is one static file whose markup, keyboard
use and escaping are ours to test, and the policy it is served under can be strict. The page may be asked for under a random
token alone, by this machine's own names alone (a page elsewhere may give its own name this address), and questions are taken
from the page itself only. The model answers one at a time. No text is logged, and no error leaves but as one sentence.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emoprobe.errors import InputError
from emoprobe.explorer import readings
from emoprobe.explorer.readings import Answer, Subject, Tell

CHARACTERS = 100_000
"""Characters of a text at most."""
BODY = 1_000_000  # bytes of a request at most
NEW_TOKENS = 60
SCRIPT = ("elements", "asking", "drawing", "keeping", "beginning")
"""The parts of the page's script, in order."""
WAITING = 12
"""Questions that may wait for the model; those that nobody waits for any more go as their turn comes."""
RATE, BURST = 20.0, 60
"""Questions a second that are answered for long, and how many at once."""
NAMES = ("127.0.0.1", "localhost")

_log = logging.getLogger(__name__)

Text = Annotated[str, Field(min_length=1, max_length=CHARACTERS)]
Name = Annotated[str, Field(max_length=200)]


class Question(BaseModel):
    """What all questions have."""

    model_config = ConfigDict(extra="forbid")
    text: Text


class Read(Question):
    concept: Name
    kind: Name


class Compare(Read):
    other: Text


class Attend(Question):
    layer: Annotated[int, Field(ge=0)]
    head: Annotated[int, Field(ge=0)] | None
    strength: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]


class GoOn(Question):
    concept: Name
    layer: Annotated[int, Field(ge=0)]
    strength: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
    steering: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
    new_tokens: Annotated[int, Field(ge=1, le=NEW_TOKENS)]


def application(subject: Subject, token: str) -> FastAPI:
    """Return the page and its questions, all below /`token`/."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page, policy = whole_page()
    turn = Turn()
    app.add_middleware(Guard, token=token, policy=policy)

    @app.exception_handler(RequestValidationError)
    async def _not_understood(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refusal(422, f"{'.'.join(map(str, first['loc'][1:])) or 'the question'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def _refused(request: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, f"{error.detail}.")

    @app.get("/")
    async def _page() -> Response:
        return HTMLResponse(page)

    @app.get("/about")
    async def _about() -> Answer:
        return {**readings.about(subject), "new_tokens": NEW_TOKENS}

    @app.post("/read")
    async def _read(request: Request, asked: Read) -> Response:
        return await turn.answer(request, lambda: readings.read(subject, **asked.model_dump()))

    @app.post("/compare")
    async def _compare(request: Request, asked: Compare) -> Response:
        return await turn.answer(request, lambda: readings.compare(subject, **asked.model_dump()))

    @app.post("/attend")
    async def _attend(request: Request, asked: Attend) -> Response:
        return await turn.answer(request, lambda: readings.attend(subject, **asked.model_dump()))

    @app.post("/continue")
    async def _continue(request: Request, asked: GoOn) -> Response:
        return await turn.stream(request, lambda tell: readings.go_on(subject, tell, **asked.model_dump()))

    return app


def whole_page() -> tuple[str, str]:
    """Return the page with its style and script inside, and the policy that lets these two run and nothing else."""
    folder = Path(__file__).parent
    page, style = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("html", "css"))
    script = "".join((folder / f"{part}.js").read_text("utf-8") for part in SCRIPT)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.replace("/* style */", style).replace("/* script */", script), policy


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def refusal(status: int, sentence: str) -> JSONResponse:
    """Return an error as one sentence."""
    return JSONResponse({"error": sentence}, status)


class Turn:
    """Let one question at a time to the model, a few wait, and send the others away."""

    def __init__(self) -> None:
        self._model = asyncio.Lock()
        self._waiting = 0
        self._left, self._when = float(BURST), time.monotonic()

    async def answer(self, request: Request, compute: Callable[[], Answer]) -> Response:
        """Answer when it is the question's turn, unless nobody waits for the answer any more."""
        if not self._within_rate() or self._waiting >= WAITING:
            return refusal(429, "Too many questions at once: wait a second, and try again.")
        self._waiting += 1
        try:
            async with self._model:
                if await request.is_disconnected():
                    return Response(status_code=204)
                return JSONResponse(await run_in_threadpool(compute))
        except InputError as error:
            return refusal(400, f"{error}.")
        except Exception as error:
            _log.error("the explorer failed with %s at %s", type(error).__name__, _place(error))
            return refusal(
                500, f"emoprobe failed with a {type(error).__name__}: this is a fault of emoprobe, not yours."
            )
        finally:
            self._waiting -= 1

    async def stream(self, request: Request, compute: Callable[[Tell], Answer]) -> Response:
        """Answer as `answer` does, but part by part as they are told, a line of JSON each, of which the last is the answer.

        Where nobody listens any more, telling the next part fails, which ends the computation. What fails before there is a
        part has its status, and what fails later is the last line.
        """
        parts: asyncio.Queue[Answer | None] = asyncio.Queue()
        loop, gone = asyncio.get_running_loop(), threading.Event()

        def tell(part: Answer) -> None:  # from the thread that computes
            if gone.is_set():
                raise InputError("nobody waits for the answer any more")
            loop.call_soon_threadsafe(parts.put_nowait, part)

        async def lines() -> AsyncIterator[bytes]:
            try:
                part = first
                while part is not None:
                    yield json.dumps(part).encode() + b"\n"
                    part = await parts.get()
                yield bytes((await answering).body)
            finally:
                gone.set()

        answering = asyncio.create_task(self.answer(request, lambda: compute(tell)))
        answering.add_done_callback(lambda _: parts.put_nowait(None))
        first = await parts.get()
        return (
            await answering
            if first is None
            else StreamingResponse(lines(), media_type="application/x-ndjson")
        )

    def _within_rate(self) -> bool:
        now = time.monotonic()
        self._left, self._when = min(BURST, self._left + RATE * (now - self._when)), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _place(error: Exception) -> str:
    """Return where an error arose; what it says may hold what somebody typed."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "an unknown place" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


class Guard:
    """Let nobody in but the page's own browser on this machine, and tell that browser what the page may do."""

    def __init__(self, app: ASGIApp, token: str, policy: str) -> None:
        self.app, self.token = app, token.encode()
        self.headers = {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "cache-control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # starting and ending; there are no web sockets
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        # A path may be "*", or lack its slash.
        token, _, rest = scope["path"].partition("/")[2].partition("/")
        refused = self._refused(scope["method"], token, headers)
        inner = {**scope, "path": f"/{rest}"}
        inner.pop("raw_path", None)
        await (refused or self.app)(inner, receive, self._with_headers(send))

    def _refused(self, method: str, token: str, headers: dict[str, str]) -> Response | None:
        host = headers.get("host", "")
        if host.partition(":")[0] not in NAMES:
            return refusal(403, "The explorer is for this machine alone.")
        if not hmac.compare_digest(token.encode(), self.token):
            return refusal(403, "The address lacks its token: use the whole of what emoprobe has printed.")
        if "transfer-encoding" in headers:  # in pieces, a question may be longer than it says
            return refusal(411, "The question comes in pieces: send it whole, with its length.")
        if method not in ("GET", "HEAD"):
            if headers.get("origin") != f"http://{host}":
                return refusal(403, "The explorer answers its own page only.")
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return refusal(415, "Questions are JSON.")
            if not headers.get("content-length", "").isdecimal():
                return refusal(411, "The question does not say how long it is.")
            if int(headers["content-length"]) > BODY:
                return refusal(413, f"The question is longer than {BODY:,} bytes: shorten the text.")
        return None

    def _with_headers(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in self.headers.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        return sending
