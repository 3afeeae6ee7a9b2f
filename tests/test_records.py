"""What an artefact says of itself is read from the head of its file, and what is wrong with that is told without torch."""

from pathlib import Path

import pytest
from heads import artefact

from emoprobe import records
from emoprobe.errors import InputError


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"no JSON",
        b"[" * 100_000,
        b"[]",
        b'{"__metadata__": 1}',
        b'{"__metadata__": {"emoprobe": "1"}}',
        b'{"__metadata__": {"emoprobe": "{\\"concepts\\": 5}"}}',
        b'{"__metadata__": {"emoprobe": "{\\"concepts\\": [5]}"}}',
    ],
    ids=lambda head: head[-30:],
)
def test_a_head_that_names_no_concepts_refuses_none(head: bytes, tmp_path: Path) -> None:
    for name, size in (("whole", len(head)), ("wrong", 2**63)):
        (tmp_path / name).write_bytes(size.to_bytes(8, "little") + head)
        assert records.recorded_names(tmp_path / name, "concepts") == []
        records.check_recorded(tmp_path / name, ["joy"])
    records.check_recorded(tmp_path / "nowhere", ["joy"])
    records.check_recorded("user/probes", ["joy"])


def test_a_concept_is_refused_with_what_may_be_meant(tmp_path: Path) -> None:
    artefact(tmp_path / "a", "probe set", concepts=["fear", "joy"])
    records.check_recorded(tmp_path / "a", ["fear", "joy"])
    with pytest.raises(
        InputError, match=r"^no probe for 'feer': did you mean 'fear'\? Here there are fear, joy$"
    ):
        records.check_recorded(tmp_path / "a", ["fear", "feer"])
    with pytest.raises(InputError, match=r"^no probe for 'ennui': there are fear, joy$"):
        records.check_recorded(tmp_path / "a", ["ennui"])
