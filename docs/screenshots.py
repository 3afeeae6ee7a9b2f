"""Take the pictures of the explorer and of a study's report that stand in this folder.

    python docs/screenshots.py [REPORT.html]

Needs `emoprobe[test]` and a Chromium (see tests/chromium.py). The explorer shows the bundled model, with the probes that
`emoprobe explore` keeps; the report is that of `emoprobe study`, by default runs/bundled/report.html, and is left out where
there is none.
"""

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

import emoprobe as ep

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from chromium import OPTIONS, chromium  # noqa: E402

WIDE, NARROW = {"width": 1200, "height": 1250}, {"width": 400, "height": 860}
TEXT = "My sister laughed when the letter came, but there was no hope in it for her, and she wept."
COLOURS = 96  # of a picture's palette: text and a few flat fields need no more


def main(report: str = "runs/bundled/report.html") -> None:
    """Take every picture that can be taken, and say which."""
    with sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            sys.exit("no Chromium: set EMOPROBE_CHROMIUM to one, or run `playwright install chromium`")
        with playwright.chromium.launch(executable_path=path, args=list(OPTIONS)) as browser:
            with ep.explore(browser=False, wait=False) as explorer:
                _take(browser, explorer.address, "explorer", WIDE, "light")
                _take(browser, explorer.address, "explorer-dark", WIDE, "dark")
                _take(browser, explorer.address, "explorer-narrow", NARROW, "light")
            if Path(report).exists():
                _take(browser, Path(report).resolve().as_uri(), "report", WIDE, "light")
            else:
                print(f"no report at {report}: `emoprobe study` writes one")


def _take(browser: Any, address: str, name: str, size: dict[str, int], scheme: str) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    if name.startswith("explorer"):
        page.fill("#text", TEXT)
        page.wait_for_selector("#run[aria-busy=false]")
        page.evaluate("document.activeElement.blur()")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS)
    picture.save(HERE / f"{name}.png", optimize=True)
    context.close()
    print(f"docs/{name}.png, {(HERE / f'{name}.png').stat().st_size // 1024} kB")


if __name__ == "__main__":
    main(*sys.argv[1:2])
