"""Start the explorer: load and fit what is missing, open a port on this machine alone, and say where the page is."""

from __future__ import annotations

import html
import os
import secrets
import socket
import sys
import threading
import time
import webbrowser
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING

from emoprobe import __version__
from emoprobe.corpora import load_corpus
from emoprobe.errors import InputError
from emoprobe.explorer.readings import Subject
from emoprobe.extras import check_explorer
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import ProbeSet, fit_probes, load_probes
from emoprobe.valattn import Valuation

if TYPE_CHECKING:
    import uvicorn

HOME = "127.0.0.1"
PATIENCE = 10.0  # seconds that a server may take to start or to end


def explore(
    model: LiveModel | str = "bundled",
    probes: ProbeSet | str | Path | None = None,
    *,
    valuation: Valuation | None = None,
    port: int = 0,
    browser: bool = True,
    wait: bool = True,
) -> Explorer:
    """Open a page on this machine that shows what probes read in a text, and what interventions do to the model.

    `model` and `probes` are objects, or what `load_model` and `load_probes` take. Without probes, some are fitted on the
    bundled corpus and kept for next time, in `cache_folder()`. `valuation` is injected by the page's λ, by default the probes'.
    `port` 0 takes a free one; `browser` opens the page. With `wait` the call ends when it is interrupted, else it returns at
    once, and `.stop()` ends the server. Raises `InputError` where FastAPI or uvicorn is missing, the port is taken, or model,
    probes and valuation do not fit.
    """
    check_explorer()
    live = load_model(model) if isinstance(model, str) else model
    if probes is None:
        probes = bundled_probes(live)
    elif not isinstance(probes, ProbeSet):
        probes = load_probes(probes)
    running = Explorer(Subject.of(live, probes, valuation), port)
    _say(f"the explorer is at {running.address}")
    if browser:
        running.open()
    if wait:
        _say("Ctrl-C ends it")
        running.until_interrupted()
    return running


class Explorer:
    """Hold a running explorer: `.address` is its page's, `.open()` shows it, `.stop()` or leaving a `with` block ends it."""

    def __init__(self, subject: Subject, port: int = 0) -> None:
        import uvicorn

        from emoprobe.explorer.server import application

        place = _bound(port)
        token = secrets.token_urlsafe(24)
        self.address = f"http://{HOME}:{place.getsockname()[1]}/{token}/"
        # What is asked holds texts and the token: nothing of it is logged.
        options = uvicorn.Config(
            application(subject, token), log_level="critical", access_log=False, lifespan="off", ws="none"
        )
        self._folders = ExitStack()
        self._server: uvicorn.Server = uvicorn.Server(options)
        self._thread = threading.Thread(target=self._server.run, args=([place],), daemon=True)
        self._thread.start()
        self._await_start()

    def _await_start(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self._server.started and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        if not self._server.started:
            raise InputError("the explorer's server did not start: give another port")

    def open(self) -> None:
        """Open the page in a browser, by way of a file that this user alone may read and that goes when the server ends.

        What a browser is started with can be read by all users of the machine, and the address holds the token.
        """
        page = Path(self._folders.enter_context(TemporaryDirectory(prefix="emoprobe-"))) / "explorer.html"
        page.touch(0o600)
        address = html.escape(self.address)
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={address}">'
            f'<title>emoprobe</title><a href="{address}">The explorer</a>\n',
            "utf-8",
        )
        webbrowser.open(page.as_uri())

    def wait(self) -> None:
        """Wait until the server has ended, or until it is interrupted."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def until_interrupted(self) -> None:
        """Wait until Ctrl-C, and end the server."""
        with self, suppress(KeyboardInterrupt):
            self.wait()

    def stop(self) -> None:
        """End the server."""
        self._folders.close()
        self._server.should_exit = True
        self._thread.join(PATIENCE)

    def __enter__(self) -> Explorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Explorer at {self.address}>"


def bundled_probes(model: LiveModel) -> ProbeSet:
    """Return probes of a model on the bundled corpus: those that are kept, or new ones, which are then kept."""
    corpus = load_corpus("bundled")
    kept = cache_folder() / f"{model.fingerprint()}-{corpus.fingerprint[:16]}-{__version__}.safetensors"
    if kept.exists():
        try:
            return load_probes(kept)
        except InputError as error:
            _say(f"the probes kept for this model cannot be read, so new ones are fitted ({error})")
    _say(
        f"fitting probes for {model.name} on {len(corpus)} bundled passages, this once (about a minute for a small model)"
    )
    probes = fit_probes(model, corpus)
    try:
        _say(f"kept: {probes.save(kept)}")
    except InputError as error:  # a home that may not be written to is no reason not to explore
        _say(f"the probes could not be kept for next time: {error}")
    return probes


def cache_folder() -> Path:
    """Return where fitted probes are kept: emoprobe/probes in XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emoprobe" / "probes"


def _bound(port: int) -> socket.socket:
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((HOME, port))
    except (OSError, OverflowError) as error:
        place.close()
        raise InputError(
            f"port {port} cannot be had on this machine ({error}): give another, or 0 for a free one"
        ) from None
    return place


def _say(what: str) -> None:
    sys.stderr.write(f"emoprobe: {what}\n")
    sys.stderr.flush()
