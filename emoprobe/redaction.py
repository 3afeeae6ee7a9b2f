"""Keeping tokens, keys and passwords out of what is written down: manifests, logs, the names of writers, messages."""

import os
import re

SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)S?$", re.IGNORECASE)
"""Names of environment variables that hold one."""
LEAST = 8
"""Characters below which a value is nobody's secret, and may be part of any word."""
PASSWORD = re.compile(r"(?<=://)[^/?#\s]+@")
"""In an address; one that holds an @ itself ends at the last."""
KNOWN = re.compile(
    r"\b(hf_|api_org_|sk-|gh[pousr]_|github_pat_|xox[abprs]-|AKIA|AIza)[\w-]{16,}"
)  # as services write them
GIVEN = re.compile(r"((?:token|key|secret|password)s?=)[^\s'\"&]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return a text without what the environment holds as a secret, passwords in addresses, and what looks like a token."""
    values = {
        value: name for name, value in os.environ.items() if SECRET.search(name) and len(value) >= LEAST
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, f"${values[value]}")
    return GIVEN.sub(r"\1[removed]", KNOWN.sub("[removed]", PASSWORD.sub("", text)))
