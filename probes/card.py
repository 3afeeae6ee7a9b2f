"""The card of a probe set: what it is, how to use it, what it was found worth beside its controls, and its limits."""

from __future__ import annotations

import json
import re
from pathlib import Path

from emoprobe.errors import InputError
from emoprobe.places import REPO
from emoprobe.probes.probe_set import ProbeSet
from emoprobe.probes.summary import sentences, table

LIMITS = (
    "A probe says what can be read out of this model's residual stream over texts like those of its corpus. It does not say "
    "that the model uses what is read, nor that anything is felt.",
    "Scores hold for texts like those of the corpus, in its language, annotated as it was. Whether they carry over to others "
    "has to be measured there.",
    "The annotations say what their annotators saw in a text, not what its writer felt. Do not use read-outs to judge people.",
    "Where a score is not above a control, the control tells as much: do not read more into the probe than that.",
)


def card(probes: ProbeSet, repo: str, licence: str | None = None) -> str:
    """Return the card of `probes` for the repository `repo`: Markdown behind the metadata that the hub reads.

    Whatever comes from the model, the corpus or the user is escaped. `licence` is an identifier of the hub's. Raises
    `InputError` for a licence of another form.
    """
    from huggingface_hub import ModelCardData

    if licence is not None and not re.fullmatch(r"[\w.-]+", licence):
        raise InputError(
            f'licence={licence!r} is no identifier of the hub: give one such as "mit" or "cc-by-4.0"'
        )
    named = REPO.fullmatch(probes.model) and not Path(probes.model).exists()
    data = ModelCardData(
        library_name="emoprobe",
        tags=["emoprobe", "probe", "interpretability", "emotion"],
        base_model=probes.model if named else None,
        license=licence,
    )
    # Raw HTML ends at the first empty line.
    scores = (
        " ".join(table(probes).split()) if len(probes.scores) else "None were measured: the probes are bare."
    )
    said = [line for part in sentences(probes) for line in part] if len(probes.scores) else []
    words = [f"- {escaped(line)}" for line in said]
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# Probes of {escaped(probes.model)}",
        "Linear probes of emotion concepts in the residual stream of a language model, made with emoprobe. Layer l is the "
        "stream that enters block l.",
        "## Use",
        f"```python\nimport emoprobe as ep\n\nmodel = ep.load_model({json.dumps(probes.model)})\n"
        f"probes = ep.load_probes({json.dumps(repo)})\n"
        'ep.trace(model, probes, "I am so happy that you came!")\n```',
        "## What they were fitted on",
        "\n".join(f"- {what}: {escaped(found)}" for what, found in _provenance(probes).items()),
        "## Scores, beside their controls",
        scores,
        "\n".join(words),
        "## Limits",
        "\n".join(f"- {limit}" for limit in LIMITS),
        "## Licence",
        f"{escaped(licence)}, as stated by whoever pushed this."
        if licence
        else "None was stated. Those of the model and of the corpus bind what was made of them.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _provenance(probes: ProbeSet) -> dict[str, str]:
    about = probes.metadata
    found = {
        "model": f"{probes.model}, {probes.n_layers} blocks, width {probes.d_model}, weights and vocabulary "
        f"{probes.fingerprint}",
        "residual stream": f"{probes.basis}, layers {', '.join(map(str, probes.layers))}",
        "concepts": ", ".join(f"{concept} ({probes.kinds[concept]})" for concept in probes.concepts),
        "corpus": f"{about.get('corpus', 'unknown')}, {about.get('texts', '?')} texts, {about.get('corpus_fingerprint', '?')}",
        "estimators": ", ".join(f"{name} for {kind}s" for kind, name in about.get("estimators", {}).items()),
        "seed": str(about.get("seed", "?")),
        "versions": ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items()),
    }
    return {what: text for what, text in found.items() if text}


def escaped(text: str) -> str:
    """Return a text as one line that Markdown shows as it is; any ASCII punctuation may stand behind a backslash there."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!:@])", r"\\\1", " ".join(text.split()))
