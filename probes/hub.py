"""Probe sets on the Hugging Face Hub: one `.safetensors` file and a card that says what it is, and what it is not.

Whoever is logged in there (`hf auth login`, or HF_TOKEN) may push. No token is taken, kept or written here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from emoprobe.errors import InputError
from emoprobe.places import hub, is_repo
from emoprobe.probes.card import card
from emoprobe.probes.probe_set import ProbeSet

FILE = "probes.safetensors"


def push_to_hub(
    probes: ProbeSet, repo: str, *, licence: str | None = None, private: bool | None = None
) -> str:
    """Put probes and their card into the model repository `repo` ("user/name") in one commit, and return its address.

    The repository is made if need be; `private` then says who may see it (None: as the account has it). `licence` is an
    identifier of the hub's, such as "cc-by-4.0": what the licences of the model and of the corpus allow, the pusher has to
    know. `load_probes("user/name")` reads the probes back. Raises `InputError` for a name of another form, and where the hub
    does not take it.
    """
    if not is_repo(repo):
        raise InputError(f'repo="{repo}" is no name of a repository: give "user/name"')
    from huggingface_hub import CommitOperationAdd, HfApi

    written = card(probes, repo, licence).encode()
    with tempfile.TemporaryDirectory() as folder:
        saved = probes.save(Path(folder) / FILE)
        operations = [CommitOperationAdd(FILE, str(saved)), CommitOperationAdd("README.md", written)]
        try:
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            return str(api.create_commit(repo, operations, commit_message="Add probes").commit_url)
        except Exception as error:  # whatever the hub's client raises: its classes change with its versions
            raise InputError(
                f'the hub did not take "{repo}" ({_first_line(error)}): check the name, the network, and that you are logged '
                "in (hf auth login)"
            ) from error


def fetched(repo: str, revision: str | None = None) -> Path:
    """Return where the probe set of a repository lies, once it was downloaded into the hub's cache.

    Raises `InputError` where it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        with hub():
            return Path(str(hf_hub_download(repo, FILE, revision=revision)))
    except Exception as error:  # as above
        raise InputError(
            f'no file "{repo}" here, nor could {FILE} be had from the hub ({_first_line(error)}): check the path, the name or '
            "the network"
        ) from error


def _first_line(error: Exception) -> str:
    from emoprobe.corpora.published import first_line

    return first_line(error)
