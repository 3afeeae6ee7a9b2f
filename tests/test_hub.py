"""Probe sets to and from the hub, against a stand-in for its client; and the card, as Markdown renders it."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import small_probes
import torch
from markdown_it import MarkdownIt

import emoprobe as ep
from emoprobe.errors import InputError
from emoprobe.probes import ProbeSet, load_probes
from emoprobe.probes.card import card, escaped
from emoprobe.probes.summary import best_rows, two


class Hub:
    """Keep what is pushed in a folder, and remember what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[tuple[Any, ...]]()

    def create_repo(self, repo: str, *, private: bool | None, exist_ok: bool) -> None:
        self.asked.append(("create", repo, private, exist_ok))
        (self.folder / repo).mkdir(parents=True, exist_ok=exist_ok)

    def create_commit(self, repo: str, operations: list[Any], *, commit_message: str) -> SimpleNamespace:
        self.asked.append(("commit", repo, commit_message))
        for operation in operations:
            with operation.as_file() as file:
                (self.folder / repo / operation.path_in_repo).write_bytes(file.read())
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")

    def hf_hub_download(self, repo: str, name: str, *, revision: str | None) -> str:
        self.asked.append(("download", repo, name, revision))
        return str(self.folder / repo / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in.hf_hub_download)
    monkeypatch.chdir(tmp_path)
    return stand_in


@pytest.fixture(scope="module")
def probes() -> ProbeSet:
    return small_probes.probes()


def test_probes_go_to_the_hub_and_come_back(hub: Hub, probes: ProbeSet) -> None:
    url = ep.push_to_hub(probes, "someone/vad", private=True)
    assert url == "https://hub/someone/vad/commit/1"
    assert hub.asked == [("create", "someone/vad", True, True), ("commit", "someone/vad", "Add probes")]
    assert sorted(path.name for path in (hub.folder / "someone/vad").iterdir()) == [
        "README.md",
        "probes.safetensors",
    ]
    back = load_probes("someone/vad", revision="v1")
    assert hub.asked[-1] == ("download", "someone/vad", "probes.safetensors", "v1")
    assert torch.equal(back.directions, probes.directions) and back.concepts == probes.concepts
    assert back.scores.equals(probes.scores)


def test_a_file_that_is_there_is_never_looked_for_on_the_hub(hub: Hub, probes: ProbeSet) -> None:
    probes.save("runs/vad")
    assert load_probes("runs/vad").concepts == probes.concepts
    for missing in ("none", "runs/none.safetensors", Path("runs/none"), "a/b/c", "./none"):
        with pytest.raises(InputError, match="no file"):
            load_probes(missing)
    assert hub.asked == []


def test_what_the_hub_refuses_is_said_in_one_line(
    hub: Hub, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_given: object, **_options: object) -> str:
        raise OSError("401 Client Error\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=r'no file "someone/none" here.*\(401 Client Error\).*check') as told:
        load_probes("someone/none")
    monkeypatch.setattr(hub, "create_commit", refuse)
    with pytest.raises(InputError, match=r"did not take.*\(401 Client Error\).*hf auth login"):
        ep.push_to_hub(probes, "someone/vad")
    assert "\n" not in str(told.value)
    for name in ("vad", "a/b/c", "some one/vad", "../vad", "someone/vad.safetensors"):
        with pytest.raises(InputError, match="no name of a repository"):
            ep.push_to_hub(probes, name)


def test_the_real_client_answers_offline_with_an_input_error() -> None:
    with pytest.raises(InputError, match=r'no file "someone/none" here, nor could probes\.safetensors'):
        load_probes("someone/none")


def test_no_token_is_taken_or_written(
    hub: Hub, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    ep.push_to_hub(probes, "someone/vad")
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hf_secret" not in path.read_bytes()


def test_the_card_says_what_where_and_how_well(probes: ProbeSet) -> None:
    text = card(probes, "someone/vad", "cc-by-4.0")
    data = huggingface_hub.ModelCard(text).data
    assert (data.license, data.library_name, data.base_model) == ("cc-by-4.0", "emoprobe", None)
    assert 'ep.load_probes("someone/vad")' in text and f'ep.load_model("{probes.model}")' in text
    assert f"corpus: {probes.metadata['corpus']}, 240 texts" in text and probes.fingerprint in text
    for row in best_rows(probes).to_dict("records"):
        cells = [row["value"], row["shuffled"], row["layer0"], row["bag_of_words"], row["control_task"]]
        assert all(two(number) in text for number in cells)
    headings = re.findall("^## (.*)$", text, re.M)
    assert headings == [
        "Use",
        "What they were fitted on",
        "Scores, beside their controls",
        "Limits",
        "Licence",
    ]
    assert "None was stated" in card(probes, "someone/vad") and "license" not in card(probes, "someone/vad")


def test_a_hub_name_is_named_as_the_base_model_and_a_folder_is_not(
    probes: ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = replace(probes, model="openai-community/gpt2")
    assert huggingface_hub.ModelCard(card(named, "a/b")).data.base_model == "openai-community/gpt2"
    Path("openai-community/gpt2").mkdir(parents=True)
    assert huggingface_hub.ModelCard(card(named, "a/b")).data.base_model is None


def rendered(text: str) -> list[Any]:
    """Return the card's body as a Markdown parser understands it: blocks, and what stands in them."""
    body = text.split("---\n", 2)[2]
    blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    return [part for block in blocks for part in (block, *(block.children or []))]


def test_nothing_in_a_name_breaks_out_of_the_card(probes: ProbeSet) -> None:
    evil = 'x"]\n\n# Heading <img src=x onerror=alert(1)> [a](http://b) `c` **d** | e\n---\n```\n&lt;'
    named = {name: evil if name == "planted" else name for name in probes.concepts}
    swapped = replace(
        probes,
        model=evil,
        concepts=tuple(named.values()),
        kinds={named[name]: kind for name, kind in probes.kinds.items()},
        scores=probes.scores.assign(concept=probes.scores.concept.replace(named)),
        confounds=probes.confounds.assign(concept=probes.confounds.concept.replace(named)),
        metadata={**probes.metadata, "corpus": evil},
    )
    found, plain = rendered(card(swapped, "a/b")), rendered(card(probes, "a/b"))
    assert [part.type for part in found] == [part.type for part in plain]
    assert {part.type for part in found} >= {"html_block", "fence", "heading_open", "text"}
    title = next(part for part in found if part.type == "inline")
    shown = "".join(part.content for part in title.children)
    assert shown == f"Probes of {' '.join(evil.split())}"
    (html,) = (part.content for part in found if part.type == "html_block")
    assert "<img" not in html and "&lt;img" in html


def test_a_licence_is_an_identifier(hub: Hub, probes: ProbeSet) -> None:
    for licence in ("", "mit\n---\n# Heading", "my own"):
        with pytest.raises(InputError, match="licence="):
            ep.push_to_hub(probes, "someone/vad", licence=licence)
    assert hub.asked == []


def test_escaped_text_renders_as_itself() -> None:
    assert escaped("a_b *c*\n# d <e> `f` | g & h") == r"a\_b \*c\* \# d \<e\> \`f\` \| g \& h"
    assert escaped(r"back\slash") == r"back\\slash"


def test_bare_probes_have_a_card_too(probes: ProbeSet) -> None:
    bare = replace(probes, scores=probes.scores.iloc[:0], confounds=probes.confounds.iloc[:0], metadata={})
    assert "None were measured" in card(bare, "a/b")
