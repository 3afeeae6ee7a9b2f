"""Keeping tokens, keys and passwords out of what is written down: manifests, logs, the names of writers, messages."""

import os
import re

NAMED = "token|key|secret|password|passwd|credential"
"""How what holds a secret is called, in whatever case."""
SECRET = re.compile(rf"({NAMED}|(^|_)pat|_pwd)s?$", re.IGNORECASE)
"""Names of environment variables that hold one; a shell keeps the folder it is in under PWD and the one before under OLDPWD."""
LEAST = 8
"""Characters below which a value is nobody's secret, and may be part of any word."""
PASSWORD = re.compile(r"(?<=://)[^/?#\s]+@")
"""In an address; one that holds an @ itself ends at the last."""
KNOWN = re.compile(
    r"\b((hf_|api_org_|sk-|gh[pousr]_|github_pat_|xox[abprs]-|AKIA|AIza)[\w-]{16,}"
    r"|eyJ[\w-]{12,}(\.[\w-]*){2}(\.[\w-]+){0,2})"
)
"""As services write them; a JSON web token begins with an object in base64url, eyJ, and has two parts more, or four."""
GIVEN = re.compile(rf"((?:{NAMED})s?=)[^\s'\"&]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return a text without what the environment holds as a secret, passwords in addresses, and what looks like a token."""
    values = {
        value: name for name, value in os.environ.items() if SECRET.search(name) and len(value) >= LEAST
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, f"${values[value]}")
    return GIVEN.sub(r"\1[removed]", KNOWN.sub("[removed]", PASSWORD.sub("", text)))
