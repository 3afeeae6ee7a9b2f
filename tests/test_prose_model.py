"""The bundled language model: small, complete, loads without a network, and has read English."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import emoprobe.models.prose
from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import fit_probes
from emoprobe.scoring import text_nll
from emoprobe.steering import sweep
from emoprobe.study import feelings
from emoprobe.study.outcomes import leaning

FOLDER = Path(emoprobe.models.prose.__file__).parent
PROSE = (
    "The rain had stopped before morning, and when she came down to breakfast the whole of the garden lay shining in the sun.",
    "He took his hat from the table, looked at the clock, and said that he was sorry but that he could not stay any longer.",
    "“I never said anything of the kind,” answered the old man, and he shut the door behind him.",
)


@pytest.fixture(scope="module")
def model() -> LiveModel:
    return load_model("bundled")


def test_the_files_are_few_and_small() -> None:
    files = {
        f.name: f.stat().st_size for f in FOLDER.iterdir() if f.suffix in {".json", ".safetensors", ".md"}
    }
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(files) == names | {"MODEL_CARD.md"}
    assert sum(files.values()) <= 15_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float32"


def test_it_is_the_model_that_its_card_describes(model: LiveModel) -> None:
    assert model.dtype == torch.float32 and model.backend == "transformers" and model.context_length == 512
    parameters = sum(weight.numel() for _, weight in model.named_weights())
    assert parameters <= 8_000_000
    card = (FOLDER / "MODEL_CARD.md").read_text()
    assert f"{parameters:,} parameters" in card and f"{model.n_layers} blocks, width {model.d_model}" in card
    assert "ELTeC" in card and "TODO" not in card
    assert load_model("prose").fingerprint() == model.fingerprint()


def test_it_has_read_english_and_not_its_shuffled_words(model: LiveModel) -> None:
    nll, _ = text_nll(model, list(PROSE))
    shuffled, _ = text_nll(model, [" ".join(sorted(text.split())) for text in PROSE])
    characters = sum(map(len, PROSE))
    assert float(nll.sum()) / torch.log(torch.tensor(2.0)) / characters < 1.45  # bits
    assert bool((shuffled > 1.2 * nll).all())


def test_steering_toward_happy_raises_words_for_it(model: LiveModel) -> None:
    """The direction of happy words themselves, not one that was fitted: a push toward them has to arrive."""
    happy = [
        "He laughed and danced.",
        "They sang with joy.",
        "She smiled at the good news.",
        "The feast was merry.",
    ]
    sad = [
        "He wept and mourned.",
        "They lay in the grave.",
        "She cried at the bad news.",
        "The house was dark and cold.",
    ]
    corpus = Corpus.from_columns(
        {"text": [*happy, *sad], "labels": [["happy"]] * 4 + [["sad"]] * 4, "group": list("abcdabcd")},
        name="words",
    )
    options = {
        "estimator": "mean_difference",
        "folds": 2,
        "permutations": 0,
        "bootstrap": 0,
        "progress": False,
    }
    probes = fit_probes(model, corpus, [2], **options)  # type: ignore[arg-type]
    words = leaning("happy", *(feelings.words("valence") or ((), ())), feelings.PROMPTS)
    found = sweep(
        model,
        probes["happy"],
        (-0.3, 0.0, 0.3),
        feelings.PROMPTS,
        [words],
        layers=2,
        controls=10,
        progress=False,
    )
    judged = found.summary().iloc[0]
    assert judged.slope > max(judged.random_high, 0)
