"""The passages are what they are said to be: one of each kind, no emotion named, no text like another."""

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from emoprobe.corpora import Corpus, load_corpus
from emoprobe.corpora.generator import EMOTIONS

FORMS = {"story", "diary", "dialogue", "message"}
NAMED = """joy joyful joyous happy happily happiness glad gladly delight delighted delightful cheerful content contented
contentment serene peaceful proud proudly pride love loves loved loving lovely adore adored beloved relief relieved surprise
surprised surprising astonished astonishing amazed amazing astounded bored boring boredom dull tedious sad sadly sadness sorrow
sorrowful grief grieving unhappy miserable shame ashamed shameful embarrassed embarrassing embarrassment humiliated guilty guilt
disgust disgusted disgusting revolting repulsive gross nauseating anger angry angrily furious fury rage livid enraged mad fear
feared fearful afraid scared scary frightened frightening terrified terror panic anxious emotion emotional""".split()


@pytest.fixture(scope="module")
def passages() -> Corpus:
    return load_corpus("passages")


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def test_there_is_one_passage_of_each_kind(passages: Corpus) -> None:
    labels = [one for (one,) in passages.data["labels"][:]]
    kinds = Counter(zip(labels, passages.groups.tolist(), passages.data["source"][:], strict=True))
    topics = set(passages.groups.tolist())
    assert len(topics) == 12 and set(labels) == set(EMOTIONS)
    assert kinds == Counter(product(EMOTIONS, topics, FORMS))
    assert len(passages) == 624
    assert load_corpus("bundled").fingerprint == passages.fingerprint


def test_no_passage_names_an_emotion(passages: Corpus) -> None:
    named = [(set(words(text)) & set(NAMED), text) for text in passages.texts]
    assert [found for found in named if found[0]] == []


def test_passages_are_short_and_their_length_does_not_tell_the_emotion(passages: Corpus) -> None:
    lengths = np.array([len(text.split()) for text in passages.texts])
    assert lengths.min() >= 20 and lengths.max() <= 65
    label = passages.label_matrix().argmax(1)
    means = np.array([lengths[label == one].mean() for one in range(13)])
    between = ((means - lengths.mean()) ** 2).mean()
    assert between / lengths.var() < 0.05


def test_no_passage_repeats_another(passages: Corpus) -> None:
    runs = Counter(
        run
        for text in passages.texts
        for run in {tuple(words(text)[k : k + 7]) for k in range(len(words(text)) - 6)}
    )
    assert [run for run, count in runs.items() if count > 1] == []
    openings = Counter(tuple(words(text)[:4]) for text in passages.texts)
    assert max(openings.values()) <= 2


def test_ratings_were_given_singly_and_go_with_the_emotion(passages: Corpus) -> None:
    label = passages.label_matrix().argmax(1)
    for dimension in ("valence", "arousal", "relevance"):
        values = passages.values(dimension)
        means = np.array([values[label == one].mean() for one in range(13)])
        expected = [getattr(EMOTIONS[name], dimension) for name in passages.labels]
        assert np.corrcoef(means, expected)[0, 1] > 0.8
        assert min(len(set(values[label == one])) for one in range(13)) >= 4
