"""The published words and clusters, and human ratings looked up for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emoprobe.corpora.emotion_words import (
    RELATIVES,
    emotion_clusters,
    emotion_words,
    load_word_norms,
    rate,
)
from emoprobe.errors import InputError

ENTRIES = "calm alarm horrify trap panic love hope self-assured grief Calm"
TABLE = pd.DataFrame({"Word": ENTRIES.split(), "V.Mean.Sum": range(1, 11), "A.Mean.Sum": range(9, -1, -1)})


def test_there_are_171_words_in_ten_clusters_of_the_published_sizes() -> None:
    words, clusters = emotion_words(), emotion_clusters()
    assert len(words) == len(set(words)) == 171 and list(words) == sorted(words)
    assert sorted(map(len, clusters.values())) == sorted([20, 9, 15, 9, 2, 15, 3, 25, 41, 32])
    assert "grief-stricken" in clusters["Despair and Shame"] and "on edge" in words
    assert set(RELATIVES) <= set(words) and "shaken" in RELATIVES


@pytest.mark.shared
def test_words_and_clusters_are_the_reference_s(shared: Path) -> None:
    reference = json.loads((shared / "reference" / "emotion_concepts.json").read_text())
    assert set(emotion_words()) == set(reference["words"])
    assert {name: list(words) for name, words in emotion_clusters().items()} == reference["clusters_table12"]


def test_norms_come_from_tables_and_files_in_any_case(tmp_path: Path) -> None:
    norms = load_word_norms(TABLE)
    assert list(norms.columns) == ["valence", "arousal"] and len(norms) == 9
    assert norms.loc["calm"].tolist() == [5.5, 4.5]  # of two spellings the mean
    path = tmp_path / "norms.csv"
    TABLE.to_csv(path)
    assert load_word_norms(path).equals(norms)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("Word\tValence\tArousal\tDominance\nnull\t0.1\t0.2\t0.3\nnan\t0.4\t0.5\t0.6\n")
    assert load_word_norms(lexicon).loc[["null", "nan"], "dominance"].tolist() == [0.3, 0.6]
    plain = pd.DataFrame({"valence": [1.0]}, index=["calm"])
    assert load_word_norms(plain).valence["calm"] == 1.0


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (pd.DataFrame({"word": ["a"], "colour": [1]}), "columns word, colour hold no word norms"),
        (pd.DataFrame({"word": ["a"], "valence": ["high"]}), "is not a number"),
    ],
)
def test_tables_without_norms_are_refused(table: pd.DataFrame, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        load_word_norms(table)
    path = tmp_path / "unnamed.csv"
    pd.DataFrame({"colour": ["calm"], "valence": [1.0]}).to_csv(path, index=False)
    with pytest.raises(InputError, match="columns colour, valence hold no word norms"):
        load_word_norms(path)
    with pytest.raises(InputError, match="no such file"):
        load_word_norms("nowhere.csv")


def test_it_is_said_which_entry_stands_for_a_word() -> None:
    norms = load_word_norms(TABLE)
    words = ["Calm", "self assured", "alarmed", "horrified", "trapped", "panicked", "loving", "hopes"]
    found = rate([*words, "grief-stricken", "on edge"], norms)
    assert found.form.tolist() == ["exact", "spelling", *["inflection"] * 6, "", ""]
    entries = ["calm", "self-assured", "alarm", "horrify", "trap", "panic", "love", "hope", "", ""]
    assert found.entry.tolist() == entries and list(found.index) == [*words, "grief-stricken", "on edge"]
    assert found.valence["alarmed"] == norms.valence["alarm"] and np.isnan(found.valence["on edge"])
    assert rate(["grief-stricken"], norms, forms=["related"]).entry.item() == "grief"
    assert rate(list(RELATIVES), norms_of(*RELATIVES.values()), forms=["related"]).form.eq("related").all()
    assert rate(["alarmed"], norms, forms=["exact"]).entry.item() == ""
    with pytest.raises(InputError, match="'rhyme' is not understood"):
        rate(["calm"], norms, forms=["rhyme"])


def norms_of(*words: str) -> pd.DataFrame:
    return load_word_norms(pd.DataFrame({"valence": range(1, len(words) + 1)}, index=list(words)))


def test_the_surest_entry_stands_for_a_word() -> None:
    table = norms_of("loving", "love", "lov", "worn out", "worn-out", "wornout", "hop", "hope")
    assert rate(["loving", "worn-out", "hoping"], table).entry.tolist() == ["loving", "worn-out", "hope"]
    assert rate(["loved"], table).entry.item() == "love"  # before "lov"
    assert rate(["worn out"], table.drop(index="worn out")).entry.item() == "worn-out"
    assert rate(["worn-out"], table.drop(index="worn-out")).entry.item() == "worn out"
    joined = rate(["worn out", "worn-out"], norms_of("wornout"))
    assert joined.entry.tolist() == ["wornout"] * 2 and joined.form.tolist() == ["spelling"] * 2
    assert rate(["loving", "worn-out"], table, forms=["inflection"]).entry.tolist() == ["love", ""]
    # In whatever order they are asked for, the surest comes first.
    assert rate(["loving"], table, forms=["inflection", "exact"]).form.item() == "exact"


@pytest.mark.parametrize(
    ("word", "entry"),
    [
        ("well-loved", "well-love"),  # no lemma of a phrase
        ("worn outs", "worn out"),
        ("red", "re"),  # too short to be a form of anything
        ("king", "k"),
        ("gas", "ga"),
        ("alarmed", "alar"),  # no doubled letter, and no k to take off
        ("bliss", "blis!"),
        ("happy", "happ"),
    ],
)
def test_no_other_entry_stands_for_a_word(word: str, entry: str) -> None:
    found = rate([word], norms_of(entry, "anything"))
    assert found.entry.item() == found.form.item() == "" and found.valence.isna().all()


def test_columns_go_by_several_names() -> None:
    for entry in ("word", "Term", " LEMMA "):
        short = load_word_norms(
            pd.DataFrame({entry: [" Calm ", "calm"], "V": [1, 3], "a": [2, 2], "D": [5, 6]})
        )
        assert short.loc["calm"].tolist() == [2, 2, 5.5] and list(short.columns) == [
            "valence",
            "arousal",
            "dominance",
        ]
        assert short.index.name == "word" and len(short) == 1
    both = pd.DataFrame({"word": ["calm"], "V.Mean.Sum": [2.0], "v": [3.0], "valence": [1.0]})
    assert load_word_norms(both).valence["calm"] == 1.0  # the plainest name
    assert load_word_norms(both.drop(columns="valence")).valence["calm"] == 2.0
    assert rate([" CALM "], load_word_norms(both)).valence.tolist() == [1.0]


@pytest.mark.shared
def test_most_emotion_words_have_human_ratings(shared: Path) -> None:
    norms = load_word_norms(shared / "data" / "warriner_vad" / "Ratings_Warriner_et_al.csv")
    found: Any = rate(emotion_words(), norms)
    assert len(norms) > 13_900 and (found.form == "exact").sum() == 126 and found.valence.notna().sum() == 146
    assert found.valence["happy"] > 7 > 3 > found.valence["heartbroken"]
    assert found[["valence", "arousal", "dominance"]].corr().loc["valence", "dominance"] > 0.7
