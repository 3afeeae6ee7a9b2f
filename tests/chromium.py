"""Where a Chromium is, for tests that look at a page, and for the script that takes its picture."""

import os
import shutil

OPTIONS = (
    "--no-sandbox",  # the page is our own, and in a container there is often no other user than root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium(playwright: object) -> str | None:
    """Return the path of a Chromium: EMOPROBE_CHROMIUM, one of the system's, playwright's own, or None."""
    given = os.environ.get("EMOPROBE_CHROMIUM")
    if given:
        return given
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    own = str(playwright.chromium.executable_path)  # type: ignore[attr-defined]
    return next(filter(None, map(shutil.which, names)), own if os.path.exists(own) else None)
