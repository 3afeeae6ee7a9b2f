"""The generated texts: known latents, even counts, unnamed emotions, and worlds that share few telling words."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline

from emoprobe.corpora import generator
from emoprobe.corpora.generator import (
    EMOTIONS,
    FORMS,
    SCALES,
    WORLDS,
    Emotion,
    GeneratedText,
    aftermaths,
    felt,
    generate,
    mood,
)
from emoprobe.errors import InputError

# Word beginnings that would name an emotion: its name, inflections and nearest synonyms.
NAMING = r"""
joy happy happi glad delight cheer merr bliss elat thrill jubil content calm peaceful seren tranquil satisf
cosy pride proud prideful love loving belov affection adore fond tender darling dearly reliev relief reassur
surpris astonish amaz startl shock stun bewilder bored boring boredom tedi dull monoton drear weary sad\b
sadly sadness sadde sorrow grief griev mourn miser unhapp gloom melanchol asham shame embarrass humiliat
mortif guilt disgust revolt repuls repell nause loath sicken anger angr fury furi rage raging irritat annoy
resent wrath outrag mad\b madd fear afraid scare scari frighten fright terror terrif panic dread anxi
nervous alarm worr neutral emotion feel felt
""".split()
NAMED = re.compile(r"\b(?:" + "|".join(NAMING) + r")", re.IGNORECASE)


@pytest.fixture(scope="module")
def texts() -> list[GeneratedText]:
    return generate(2_600, seed=0)


def test_the_same_arguments_give_the_same_texts_and_another_seed_others(texts: list[GeneratedText]) -> None:
    assert generate(2_600, seed=0) == texts
    assert generate(260, seed=1) != texts[:260]


def test_emotions_and_worlds_come_evenly(texts: list[GeneratedText]) -> None:
    assert set(Counter((t.emotion, t.world) for t in texts).values()) == {
        2_600 // (len(EMOTIONS) * len(WORLDS))
    }
    uneven = Counter((t.emotion, t.world) for t in generate(1_000))
    assert max(uneven.values()) - min(uneven.values()) <= 1
    assert 0.2 < sum(t.form == "pair" for t in texts) / len(texts) < 0.3


def test_the_emotions_are_spread_over_the_whole_space() -> None:
    assert len(EMOTIONS) >= 13 and len(WORLDS) >= 10
    values = np.array([(e.valence, e.arousal, e.relevance) for e in EMOTIONS.values()])
    assert np.abs(np.corrcoef(values.T)[np.triu_indices(3, 1)]).max() < 0.6
    high = values[:, 1] > 0.5
    for sign in (-1, 1):
        assert (high & (sign * values[:, 0] > 0.5)).any() and (~high & (sign * values[:, 0] > 0.5)).any()


def test_no_text_names_an_emotion(texts: list[GeneratedText]) -> None:
    for text in texts:
        assert not NAMED.search(f"{text.text} {text.aftermath}"), text
    assert NAMED.search("She was Happy") and NAMED.search("an angry man")


def test_every_sentence_of_the_banks_gets_used() -> None:
    """A sentence that could never come out would escape the scan above."""
    texts = generate(6_500, seed=0, forms=("first",))
    said = {s for t in texts for s in re.split(r"(?<=[.])\s", t.text)}
    bare = {re.sub(r"[^a-z]", "", s.lower()) for s in said}
    for world, cells in generator._BANKS["worlds"].items():
        assert set(cells) == set(EMOTIONS)
        for emotion, bank in cells.items():
            assert len(bank["events"]) >= 3 and bank["body"] and bank["acts"]
            for template in chain(*bank.values()):
                core = re.sub(r"[^a-z]", "", generator._sentence(template, "I").lower())
                assert any(core in s for s in bare), (world, emotion, template)


def test_a_classifier_of_words_fails_in_worlds_it_has_not_seen() -> None:
    texts = generate(2_600, seed=1, forms=("first", "third"))
    words, emotions = [t.text for t in texts], [t.emotion for t in texts]
    classifier = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=300))
    grouped = cross_val_score(classifier, words, emotions, groups=[t.world for t in texts], cv=GroupKFold(5))
    assert grouped.mean() < 0.2
    assert (
        cross_val_score(classifier, words, emotions, cv=StratifiedKFold(2)).mean() > 0.95
    )  # the words are there


FUNCTION_WORDS = """
the and of to in on at a an with for by from into over under up down out off his her my him me he she it its as that while was
were had not no all one two so until before after through
""".split()


def test_what_worlds_share_is_function_words() -> None:
    """They alone say something of the emotion in a world not seen; all the rest that worlds share does not."""
    texts = generate(2_600, seed=0)
    words, emotions, worlds = zip(*((t.text, t.emotion, t.world) for t in texts), strict=True)
    found: dict[str, set[str]] = {}
    for text, world in zip(words, worlds, strict=True):
        for word in TfidfVectorizer().build_analyzer()(text):
            found.setdefault(word, set()).add(world)
    shared = {word for word, where in found.items() if len(where) > 1}

    def accuracy(vocabulary: set[str]) -> float:
        classifier = make_pipeline(
            TfidfVectorizer(sublinear_tf=True, vocabulary=sorted(vocabulary)),
            LogisticRegression(C=10, max_iter=300),
        )
        return float(cross_val_score(classifier, words, emotions, groups=worlds, cv=GroupKFold(5)).mean())

    assert 0.15 < accuracy(shared & set(FUNCTION_WORDS)) < 0.25
    assert accuracy(shared - set(FUNCTION_WORDS)) < 0.11


def test_aftermaths_are_worded_by_emotion_alone(texts: list[GeneratedText]) -> None:
    for emotion in EMOTIONS:
        assert len(aftermaths(emotion)) >= 6
    shared = Counter(
        w for e in EMOTIONS for w in set(re.findall(r"[a-z]{5,}", " ".join(aftermaths(e)).lower()))
    )
    assert [w for w, n in shared.items() if n > 3] == ["afterwards"]
    said = {e: {re.sub(r"\W", "", s) for s in aftermaths(e, "I", intensity=0.6)} for e in EMOTIONS}
    assert len(set().union(*said.values())) == sum(map(len, said.values()))


def test_aftermaths_take_the_experiencer_and_the_intensity() -> None:
    assert all("Maya" in s and " I " not in s for s in aftermaths("fear", "Maya"))
    durations = [
        aftermaths("anger", intensity=i)[0].removeprefix(aftermaths("anger")[0][:20]) for i in (0.01, 0.2, 1)
    ]
    assert durations[0] == durations[1] != durations[2]


def test_spans_are_the_sentences_about_the_experiencer(texts: list[GeneratedText]) -> None:
    for text in texts:
        mine = [text.text[a:b] for a, b in text.spans]
        assert mine and all(s.endswith(".") and s[0].isupper() for s in mine)
        if text.form != "pair":
            assert " ".join(mine) == text.text
            continue
        theirs = text.text
        for sentence in mine:
            theirs = theirs.replace(sentence, "", 1)
        for who, said in ((text.experiencer, " ".join(mine)), (text.other, theirs)):
            assert re.search(r"\b(I|My|my)\b" if who == "I" else rf"\b{who}\b", said)
        assert text.other is not None and text.other not in " ".join(mine).replace("It", "").split()


def test_latents_agree_with_one_another(texts: list[GeneratedText]) -> None:
    rest = EMOTIONS["neutral"]
    for text in texts:
        weight = (1 + text.intensity) / 2
        for dimension in ("valence", "arousal", "relevance"):
            full, still = getattr(EMOTIONS[text.emotion], dimension), getattr(rest, dimension)
            assert getattr(text, dimension) == pytest.approx(weight * full + (1 - weight) * still)
        assert (text.form == "pair") == (text.other is not None) == (text.other_emotion is not None)
        assert text.other_emotion != text.emotion and text.other != text.experiencer
        assert (text.speaker == "I") == ("I" in (text.experiencer, text.other))
        assert (text.form == "first") <= (text.experiencer == "I")


def test_intensity_shows_in_the_context_and_in_the_aftermath() -> None:
    texts = generate(1_300, seed=3, forms=("third",))
    for words, bank in (("text", "degrees"), ("aftermath", "durations")):
        for text in texts:
            level = round(text.intensity * 5) - 1
            assert any(phrase in getattr(text, words) for phrase in generator._BANKS[bank][level]), text


def test_words_of_a_mood_are_drawn_by_the_dimension_alone_with_log_odds_linear_in_it() -> None:
    """Counted over many draws, against the odds worked out by hand: exp(((a - x)² - (b - x)²) / (2 · 0.15²))."""
    rng, counts = random.Random(0), Counter()
    feeling = Emotion(valence=0.4, arousal=0.3, relevance=0.5)
    for _ in range(20_000):
        sentence = mood(feeling, "Maya", rng)
        assert sentence.startswith("Maya found the day ") and sentence.endswith(".")
        counts.update(re.findall(r"\w+", sentence))
    for phrase, place in (
        ("found the day", 0.7),
        ("thought the tea", 0.7),
        ("called the sky", 0.7),
        ("moved", 0.3),
    ):
        words = SCALES[phrase]
        levels = np.arange(len(words)) / (len(words) - 1)
        expected = np.exp(-((levels - place) ** 2) / (2 * 0.15**2))
        found = np.array([counts[word] for word in words]) / 20_000
        assert found == pytest.approx(expected / expected.sum(), abs=0.015), phrase


def test_no_two_scales_share_a_word_and_no_mood_names_an_emotion() -> None:
    words = list(chain(*SCALES.values()))
    assert len(words) == len(set(words)) == 9 * len(SCALES)
    assert not any(NAMED.search(word) for word in words)
    assert not set(words) & set(re.findall(r"\w+", " ".join(chain(*(aftermaths(e) for e in EMOTIONS)))))


def test_an_emotion_of_some_intensity_lies_between_neutral_and_its_full_place() -> None:
    assert felt("fear", 1.0) == EMOTIONS["fear"] and felt("neutral", 0.2) == EMOTIONS["neutral"]
    assert felt("fear", 0.2).valence == pytest.approx(0.6 * EMOTIONS["fear"].valence)


def test_choices_narrow_the_texts() -> None:
    texts = generate(40, emotions=["joy", "fear"], worlds=["farm"], forms=["pair"])
    assert {t.emotion for t in texts} == {"joy", "fear"} == {t.other_emotion for t in texts}
    assert {t.world for t in texts} == {"farm"} and {t.form for t in texts} == {"pair"}
    assert generate(0) == [] and set(FORMS) == {t.form for t in generate(50)}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: generate(-1), "n must not be negative"),
        (lambda: generate(1, forms=["letter"]), "unknown form 'letter': choose from first, third, pair"),
        (lambda: generate(1, emotions=["ennui"]), "unknown emotion 'ennui'"),
        (lambda: generate(1, worlds=[]), "no world was given"),
        (lambda: aftermaths("joy", "Zeno"), "unknown experiencer 'Zeno'"),
        (lambda: aftermaths("joy", intensity=0), "intensity must be in"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(wrong, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        wrong()
    assert "\n" not in str(raised.value)


def test_a_text_cannot_be_changed(texts: list[GeneratedText]) -> None:
    with pytest.raises(AttributeError):
        texts[0].text = ""  # type: ignore[misc]
    assert replace(texts[0], text="") != texts[0]
