"""What a corpus promises, and that every way of writing one down comes to the same."""

import csv
import io
import itertools
import json
import math
import re
import warnings
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from emoprobe.corpora import Corpus, annotated_sentence, load_corpus, published, token_targets
from emoprobe.errors import InputError

NAN = float("nan")
TEXTS = ["The kettle sang.", "None", "She slammed\nthe door, twice.", "«Très bien», he said."]
LABELS = [["joy"], [], ["anger", "fear"], ["joy"]]
VALENCE = [0.5, NAN, -1.0, 1.0]
GROUPS = ["a", "b", "b", "c"]
SPLIT = ["train", "train", "validation", "test"]
SPANS = [[{"start": 4, "end": 10, "valence": 0.25}], [], [{"start": 0, "end": 3, "valence": NAN}], []]


def reference(**changes: object) -> Corpus:
    columns = {
        "text": TEXTS, "labels": LABELS, "valence": VALENCE, "group": GROUPS, "split": SPLIT, "spans": SPANS
    }  # fmt: skip
    return Corpus.from_columns(columns | changes, dimensions={"valence": (-1, 1)}, name="reference")


def plain(texts: list[str], **columns: object) -> Corpus:
    return Corpus.from_columns({"text": texts, **columns})


# ---- the schema


def test_views_agree_with_the_columns():
    corpus = reference()
    assert corpus.texts == TEXTS and len(corpus) == 4
    assert corpus.labels == ("anger", "fear", "joy")
    assert corpus.label_matrix().tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert corpus.label_matrix().dtype == bool
    np.testing.assert_array_equal(corpus.values("valence"), VALENCE)
    assert corpus.groups.tolist() == GROUPS
    assert corpus.concepts == [
        ("anger", "label"),
        ("fear", "label"),
        ("joy", "label"),
        ("valence", "dimension"),
    ]
    assert corpus.splits == {"train": 2, "validation": 1, "test": 1}
    assert not corpus.single_label and corpus.select("train").single_label
    assert not plain(["no labels at all"]).single_label


def test_what_is_left_out_is_filled_in():
    corpus = Corpus.from_columns({"text": ["a", "b"]}, dimensions={"valence": (-1, 1)}, name="bare")
    assert corpus.data[:] == {
        "text": ["a", "b"], "labels": [[], []], "valence": pytest.approx([NAN, NAN], nan_ok=True),
        "group": ["row 0", "row 1"], "source": ["bare", "bare"], "split": ["", ""], "spans": [[], []],
    }  # fmt: skip


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, NAN, None])
def test_values_within_the_range_pass(value: float):
    assert np.array_equal(
        reference(valence=[value] * 4).values("valence")[:1], [np.nan if value is None else value], True
    )


@pytest.mark.parametrize("value", [np.nextafter(1.0, 2.0), -1.5, math.inf, -math.inf])
def test_values_outside_the_range_are_refused_where_they_stand(value: float):
    with pytest.raises(
        InputError,
        match=r"^reference: row 3 \(the first text is row 1\), column 'valence': .*outside the range -1 to 1",
    ):
        reference(valence=[0.0, NAN, value, 0.0])
    spans = [[], [], [], [{"start": 0, "end": 2, "valence": value}]]
    with pytest.raises(InputError, match=r"row 4 .*column 'spans: valence'.*outside the range"):
        reference(spans=spans)


@pytest.mark.parametrize("text", ["", "  \n\t", "\0", "\0 \0", None])
def test_texts_with_nothing_in_them_are_refused(text: str):
    with pytest.raises(
        InputError, match=r"row 2 .*column 'text': (the cell|'.*x00.*') is empty; leave the row out"
    ):
        plain(["a text", text])


@pytest.mark.parametrize("text", [12, 0.5, ["a"], "lone \ud800 surrogate"])
def test_texts_that_are_none_are_refused(text: object):
    with pytest.raises(InputError, match=r"row 2 .*column 'text': .* is not text"):
        plain(["a text", text])


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (0, 17), (3, 3), (5, 2)])
def test_spans_outside_their_text_are_refused(start: int, end: int):
    good = reference(spans=[[{"start": 0, "end": 16, "valence": 0.1}], [], [], []])
    assert len(good) == 4
    message = rf"row 1 .*column 'spans': \({start}, {end}\) lies outside its text; .* 16, the text's length"
    with pytest.raises(InputError, match=message):
        reference(spans=[[{"start": start, "end": end, "valence": 0.1}], [], [], []])


def test_labels_outside_the_vocabulary_are_refused():
    columns = {"text": ["a", "b"], "labels": [["joy"], ["jo"]]}
    with pytest.raises(InputError, match=r"row 2 .*'jo' is not a known label; the labels are: joy, anger"):
        Corpus.from_columns(columns, labels=["joy", "anger"])
    assert Corpus.from_columns(columns).labels == ("jo", "joy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["joy", "joy"]}, "'joy' is named twice"),
        ({"labels": ["valence"], "dimensions": {"valence": (0, 1)}}, "'valence' is named twice"),
        ({"dimensions": {"valence": (1, 1)}}, "the range 1 to 1 of 'valence' is none"),
        (
            {"dimensions": {"valence": (0, math.inf)}},
            "the range 0 to inf of 'valence' is none; give the lowest value, then the highest",
        ),
        ({"dimensions": {"group": (0, 1)}}, "cannot be called 'group'"),
    ],
)
def test_concepts_that_could_be_mixed_up_are_refused(arguments: dict, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        Corpus.from_columns({"text": ["a"]}, **arguments)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": [["joy"]]}, "no column 'text'; there are: labels"),
        ({"text": []}, "no texts"),
        ({"text": ["a"], "mood": ["b"]}, "column 'mood' is not in the schema"),
        ({"text": ["a"], "group": ["b", "c"]}, "column 'group' has 2 rows and 'text' 1"),
        ({"text": ["a"], "spans": [[(0, 1)]]}, "is no list of spans"),
        ({"text": ["a"], "labels": [[["joy"]]]}, "column 'labels'"),
    ],
)
def test_columns_outside_the_schema_are_refused(columns: dict, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        Corpus.from_columns(columns, labels=[])


def test_a_dataset_of_another_shape_is_no_corpus():
    with pytest.raises(InputError, match="not the schema's"):
        Corpus(Dataset.from_dict({"text": ["a"]}), "bare", (), {})


# ---- groups and the leak through repeated texts


def same_group(corpus: Corpus) -> np.ndarray:
    return corpus.groups[:, None] == corpus.groups[None, :]


def closure(links: np.ndarray) -> np.ndarray:
    """The independent oracle: transitive closure by repeated squaring of the adjacency matrix."""
    reach = links
    while not np.array_equal(reach, further := (reach.astype(int) @ reach.astype(int)) > 0):
        reach = further
    return reach


@pytest.mark.parametrize("seed", range(20))
def test_a_text_never_straddles_groups(seed: int):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 30, size=24)
    given = rng.integers(0, 8, size=24)
    shapes = ["The word {}", "the word  {}", " THE WORD\n{} "]  # the same but for case and spacing
    texts = [shapes[i % 3].format(word) for i, word in enumerate(words)]
    corpus = plain(texts, group=[f"g{g}" for g in given])
    by_text, by_group = words[:, None] == words[None, :], given[:, None] == given[None, :]
    assert (by_text & ~by_group).any(), "the control: as given, some text does straddle groups"
    np.testing.assert_array_equal(same_group(corpus), closure(by_text | by_group))
    assert set(corpus.groups) <= {f"g{g}" for g in given}
    again = plain(texts, group=corpus.groups.tolist())
    assert again.groups.tolist() == corpus.groups.tolist()


def test_stock_phrases_do_not_join_documents():
    texts = [
        "Sincerely, Jo",
        "We met in May.",
        "sincerely,  jo",
        "We met in June.",
        "Sincerely, Jo",
        "Sincerely, jo",
    ]
    found = plain(texts, group=["letter", "letter", "reply", "reply", "note", "other note"])
    # ... but texts that stand alone are one text, however short.
    assert found.groups.tolist() == ["letter", "letter", "reply", "reply", "note", "note"]
    assert plain(found.texts, group=found.groups.tolist()).groups.tolist() == found.groups.tolist()
    longer = [text.replace(",", ", your") for text in texts]
    assert plain(longer, group=list("aabbcd")).groups.tolist() == list("aaaaaa")


def test_different_texts_keep_their_groups():
    texts = ["word 1", "word 2", "word-1", "word 1."]
    assert plain(texts, group=list("abcd")).groups.tolist() == list("abcd")
    assert plain([*texts, "WORD 1"], group=list("abcde")).groups.tolist() == list("abcda")


def test_groups_that_are_joined_are_told_of_where_a_corpus_is_loaded() -> None:
    frame = pd.DataFrame(
        {"text": ["one fine day", "a dark night", "One fine day", "rain"], "group": list("abcc")}
    )
    with pytest.warns(UserWarning, match=r"3 groups become 2\), so that no text is both"):
        assert load_corpus(frame).groups.tolist() == list("abaa")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_corpus(frame.iloc[1:])
        load_corpus(frame[["text"]])  # texts without groups join none


# ---- selecting and sampling


def test_select_by_split_indices_and_mask_agree():
    corpus = reference()
    by_split = corpus.select("train")
    for other in (corpus.select(indices=[0, 1]), corpus.select(mask=[True, True, False, False])):
        assert other.fingerprint == by_split.fingerprint
    assert by_split.texts == TEXTS[:2] and by_split.labels == corpus.labels
    assert corpus.select("dev").texts == corpus.select("validation").texts == TEXTS[2:3]
    assert corpus.select(indices=[3, 0]).texts == [TEXTS[3], TEXTS[0]]
    assert corpus.select(indices=[3, 0]).select(indices=[1]).texts == [TEXTS[0]]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "exactly one"),
        ({"split": "train", "indices": [0]}, "exactly one"),
        ({"split": "trian"}, "no split 'trian'; there are: train, validation, test"),
        ({"split": ""}, "no split ''"),
        ({"indices": []}, "nothing is selected"),
        ({"indices": [4]}, "from 0 to 3"),
        ({"indices": [-1]}, "from 0 to 3"),
        ({"mask": [False] * 4}, "nothing is selected"),
        ({"mask": [True]}, "a mask wants 4 booleans"),
        ({"mask": [0, 1, 0, 1]}, "a mask wants 4 booleans"),
    ],
)
def test_a_selection_of_nothing_is_refused(choice: dict, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        reference().select(**choice)


def test_samples_are_seeded_ordered_and_without_replacement():
    corpus = plain([f"text {i}" for i in range(50)])
    position = {text: i for i, text in enumerate(corpus.texts)}
    first, same, other = corpus.sample(20, seed=3), corpus.sample(20, seed=3), corpus.sample(20, seed=4)
    rows = [position[text] for text in first.texts]
    assert rows == sorted(set(rows)) and len(rows) == 20
    assert first.texts == same.texts != other.texts
    assert corpus.sample(1000).texts == corpus.texts
    with pytest.raises(InputError, match="ask for at least one"):
        corpus.sample(0)


def test_balanced_samples_are_balanced_until_a_label_runs_out():
    labels = [["common"]] * 80 + [["some"]] * 15 + [["rare"]] * 3 + [[]] * 2
    corpus = plain([f"text {i}" for i in range(100)], labels=labels)

    def counts(sample: Corpus) -> dict[str, int]:
        return dict(zip(sample.labels, sample.label_matrix().sum(0).tolist(), strict=True))

    assert counts(corpus.sample(9, balanced=True)) == {"common": 3, "rare": 3, "some": 3}
    assert counts(corpus.sample(23, balanced=True)) == {"common": 10, "rare": 3, "some": 10}
    assert counts(corpus.sample(100, balanced=True)) == {"common": 80, "rare": 3, "some": 15}
    assert counts(corpus.sample(9, seed=0))["rare"] < 3, "the control: an unbalanced sample is not"

    shared = plain([f"text {i}" for i in range(40)], labels=[["often"]] * 30 + [["often", "seldom"]] * 10)
    assert counts(shared.sample(11, balanced=True)) == {"often": 11, "seldom": 10}, "the scarcest draws"


# ---- identity and looks


def test_the_fingerprint_sees_contents_and_nothing_else():
    same = [
        reference(),
        reference(group=["x", "y", "y", "z"]),
        reference(source=["elsewhere"] * 4),
        Corpus(reference().data, "another name", ("joy", "anger", "fear"), {"valence": (-1.0, 1.0)}),
    ]
    assert {corpus.fingerprint for corpus in same} == {reference().fingerprint}
    other = [
        reference(text=[*TEXTS[:3], "Très bien."]),
        reference(labels=[["joy"], [], ["anger"], ["fear"]]),
        reference(valence=[0.5, NAN, -1.0, np.nextafter(1.0, 0.0)]),
        reference(group=["a", "b", "c", "d"]),
        reference(split=["train", "test", "validation", "test"]),
        reference(spans=[[], [], [], []]),
        Corpus(reference().data, "reference", ("anger", "fear", "joy"), {"valence": (-1.0, 2.0)}),
        Corpus(reference().data, "reference", ("anger", "fear", "joy", "pride"), {"valence": (-1.0, 1.0)}),
        reference().select(indices=[1, 0, 2, 3]),
    ]
    assert len({corpus.fingerprint for corpus in [reference(), *other]}) == len(other) + 1
    assert reference().fingerprint == "f78dd335691819f6687a9a6b15ce8b6b", "artefacts written earlier carry it"


def test_it_shows_itself_in_words_and_escaped_in_html():
    text = repr(reference())
    assert text == (
        "Corpus('reference': 4 texts; 3 groups; 3 labels (anger, fear, joy); valence [-1, 1]; "
        "train 2; validation 1; test 1)"
    )
    evil = "<script>alert(1)</script>"
    corpus = Corpus.from_columns(
        {"text": [evil], "labels": [[evil]], evil + "s": [0.5], "group": [evil], "source": [evil]},
        name=evil,
        dimensions={evil + "s": (0, 1)},
    )
    page = corpus._repr_html_()
    assert "<script" not in page and page.count("&lt;script") >= 6


def test_nothing_in_memory_is_cached_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    corpus = load_corpus(reference().frame, limit=3).select(indices=[2, 0]).sample(1)
    assert corpus.data.cache_files == [] and not (tmp_path / "cache").exists()


# ---- words and tokens

SENTENCE = [("Late", -0.4, 0.3, 0.6), ("again,", -0.6, 0.5, 0.8), ("naturally.", None, None, 0.0)]


def test_words_annotated_by_hand_become_spans():
    row = annotated_sentence(SENTENCE)
    assert row["text"] == "Late again, naturally."
    words = [row["text"][span["start"] : span["end"]] for span in row["spans"]]
    assert words == ["Late", "again,", "naturally."]
    assert row["spans"][1] == {"start": 5, "end": 11, "valence": -0.6, "arousal": 0.5, "relevance": 0.8}

    corpus = Corpus.from_words({"complaint": SENTENCE, "thanks": [("Thanks!", 0.9, 0.4, 0.5)]})
    assert corpus.dimensions == {"valence": (-1, 1), "arousal": (0, 1), "relevance": (0, 1)}
    assert corpus.groups.tolist() == ["complaint", "thanks"]
    assert np.isnan(corpus.values("valence")).all(), "no value is made up for the whole sentence"
    assert corpus.data["spans"][1] == [
        {"start": 0, "end": 7, "labels": [], "valence": 0.9, "arousal": 0.4, "relevance": 0.5}
    ]
    assert math.isnan(corpus.data["spans"][0][2]["valence"])
    assert Corpus.from_words([SENTENCE]).texts == ["Late again, naturally."]
    scaled = Corpus.from_words([[("calm", 7)]], dimensions=["calm"], ranges={"calm": (1, 9)})
    assert scaled.data["spans"][0] == [{"start": 0, "end": 4, "labels": [], "calm": 7.0}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a sentence without words"),
        ([("", 0, 0, 0)], "word 1 is ''"),
        ([("good", 0.1, 0.2)], "word 1, 'good', has 2 values; give valence, arousal, relevance"),
        ([("good", 0.1, 0.2, 3)], "outside the range 0 to 1"),
        ([("good", "very", 0.2, 0.3)], "row 1 (the first text is row 1), column 'spans'"),
    ],
)
def test_words_that_do_not_fit_are_refused(words: list, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        Corpus.from_words([words])
    with pytest.raises(InputError, match="'zeal' has no range; pass ranges="):
        Corpus.from_words([[("good", 1)]], dimensions=["zeal"])


def test_token_targets_by_hand():
    #        0123456789012345
    text = "I'm so happy now"
    spans = [
        {"start": 0, "end": 3, "valence": 0.0},
        {"start": 7, "end": 12, "valence": 0.9},
        {"start": 13, "end": 16, "valence": NAN},
        {"start": 10, "end": 12, "valence": 0.3},
    ]
    tokens = {(0, 0): NAN, (0, 1): 0.0, (1, 3): 0.0, (3, 6): NAN, (6, 9): 0.9, (9, 12): (3 * 0.9 + 2 * 0.3) / 5,
              (2, 8): (1 * 0.0 + 1 * 0.9) / 2, (12, 16): NAN, (16, 16): NAN}  # fmt: skip
    assert all(end <= len(text) for _, end in tokens)
    np.testing.assert_allclose(
        token_targets(spans, list(tokens), "valence"), list(tokens.values()), rtol=1e-12
    )
    assert np.isnan(token_targets(spans, list(tokens), "arousal")).all()
    assert np.isnan(token_targets([], np.array([[0, 3]]), "valence")).all()
    assert token_targets(spans, [], "valence").shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_token_targets_are_the_mean_over_characters(seed: int):
    rng = np.random.default_rng(seed)
    cuts = np.unique(np.r_[0, rng.integers(0, 60, size=9), 60])
    spans = [{"start": a, "end": b, "x": rng.normal()} for a, b in itertools.pairwise(cuts.tolist())]
    per_character = np.concatenate([[s["x"]] * (s["end"] - s["start"]) for s in spans])
    tokens = np.sort(rng.integers(0, 61, size=(40, 2)), axis=1)
    expected = [per_character[a:b].mean() if b > a else NAN for a, b in tokens]
    np.testing.assert_allclose(token_targets(spans, tokens, "x"), expected, rtol=1e-12)


# ---- tables of all kinds come to the same


def as_frame() -> pd.DataFrame:
    frame = reference().frame
    return frame.rename(
        columns={"text": "sentence", "labels": "emotion", "valence": "V", "group": "doc", "split": "fold"}
    )


NAMES = {"text": "sentence", "labels": "emotion", "valence": "V", "group": "doc", "split": "fold"}


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    frame = frame.assign(
        emotion=frame["emotion"].map(", ".join),
        spans=frame["spans"].map(lambda spans: json.dumps(spans).replace("NaN", "null")),
    )
    frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


def write_json(frame: pd.DataFrame, path: Path) -> None:
    frame.to_json(path, orient="records", lines=path.suffix == ".jsonl", force_ascii=False)


WRITERS = {"csv": write_csv, "tsv": write_csv, "json": write_json, "jsonl": write_json,
           "parquet": lambda frame, path: frame.to_parquet(path)}  # fmt: skip


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_round_trip_through_a_file_changes_nothing(tmp_path: Path, suffix: str):
    path = tmp_path / f"mine.{suffix}"
    WRITERS[suffix](as_frame(), path)
    corpus = load_corpus(path, columns=NAMES)
    assert corpus.name == path.name and corpus.fingerprint == reference().fingerprint
    assert load_corpus(str(path), columns=NAMES, split="dev").texts == TEXTS[2:3]


def test_labels_of_spans_go_round_too_and_enter_the_fingerprint():
    spans = [[{"start": 0, "end": 4, "labels": ["joy"]}, {"start": 5, "end": 7, "labels": "awe"}], None]
    made = Corpus.from_columns({"text": ["glad to come", "nothing"], "spans": spans})
    assert made.labels == ("awe", "joy") and made.data["spans"][0][1]["labels"] == ["awe"]
    for source in (made.frame, made.data):
        assert load_corpus(source).fingerprint == made.fingerprint
    bare = [[{"start": 0, "end": 4}, {"start": 5, "end": 7}], None]
    other = Corpus.from_columns({"text": made.texts, "spans": bare}, labels=made.labels)
    assert other.fingerprint != made.fingerprint


def test_a_round_trip_through_memory_changes_nothing():
    expected = reference().fingerprint
    assert load_corpus(reference().frame).fingerprint == expected
    assert load_corpus(as_frame(), columns=NAMES).fingerprint == expected
    assert load_corpus(reference().data).fingerprint == expected
    parts = {
        split: reference().select(split).data.remove_columns("split")
        for split in ("train", "validation", "test")
    }
    assert load_corpus(DatasetDict(parts)).fingerprint == expected
    buffer = io.StringIO(reference().frame.drop(columns="spans").to_csv(index=False))
    written = pd.read_csv(buffer, keep_default_na=False)  # labels are now "['anger', 'fear']"
    assert load_corpus(written).fingerprint == reference(spans=[[]] * 4).fingerprint


def test_a_round_trip_keeps_dimensions_of_any_name_and_order():
    ranges = {"zeal": (0, 5), "relevance": (1, 5), "effort": (-2, 2)}
    corpus = Corpus.from_columns(
        {"text": ["a"], "zeal": [1], "relevance": [2], "effort": [0]}, dimensions=ranges
    )
    again = load_corpus(corpus.frame, ranges=corpus.dimensions)
    assert list(again.dimensions) != list(corpus.dimensions) and again.dimensions == corpus.dimensions
    assert again.fingerprint == corpus.fingerprint


def test_class_numbers_become_names_and_keep_the_whole_vocabulary(tmp_path: Path):
    names = ["rage, fury", "joy", "pride"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    data = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    data.to_parquet(str(tmp_path / "hub.parquet"))
    for source in (data, tmp_path / "hub.parquet"):
        corpus = load_corpus(source)
        assert corpus.labels == tuple(names)
        assert corpus.data["labels"][:] == [["joy"], ["rage, fury"], []]
    lists = Features({"text": Value("string"), "labels": List(ClassLabel(names=names))})
    data = Dataset.from_dict({"text": ["a", "b"], "labels": [[2, 0], []]}, features=lists)
    assert load_corpus(data).data["labels"][:] == [["pride", "rage, fury"], []]
    assert load_corpus(data, columns={"source": "labels"}).data["source"][:] == ["pride, rage, fury", ""]
    topics = Features({"text": Value("string"), "group": ClassLabel(names=["work", "love"])})
    data = Dataset.from_dict({"text": ["a", "b"], "group": [1, 0]}, features=topics)
    assert load_corpus(data).groups.tolist() == ["love", "work"]


def test_labels_in_columns_of_their_own():
    frame = pd.DataFrame({"text": ["a", "b", "c"], "joy": [1, 0, 1], "fear": [0, 0, 1]})
    corpus = load_corpus(frame, columns={"labels": ["joy", "fear", "joy"][:2]})
    assert corpus.data["labels"][:] == [["joy"], [], ["joy", "fear"]] and corpus.labels == ("joy", "fear")


def test_numbers_as_labels_and_groups_are_written_out():
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": [1.0, None, 0], "group": [7, 7, 8]})
    corpus = load_corpus(frame)
    assert corpus.data["labels"][:] == [["1"], [], ["0"]] and corpus.groups.tolist() == ["7", "7", "8"]


def test_marks_and_breaks_of_unicode_are_no_part_of_the_format(tmp_path: Path):
    for file, content in (
        ("a.csv", 'text,label\n"one\u2028two",joy\n'),
        ("a.jsonl", '{"text": "one\u2028two", "label": "joy"}\r\n'),
    ):
        (tmp_path / file).write_text("\ufeff" + content, encoding="utf-8")
        corpus = load_corpus(tmp_path / file)
        assert corpus.texts == ["one\u2028two"] and corpus.labels == ("joy",)


def test_sentences_annotated_by_word_load_from_files(tmp_path: Path):
    expected = Corpus.from_words([SENTENCE]).fingerprint
    (tmp_path / "w.jsonl").write_text(json.dumps({"words": SENTENCE}) + "\n\n", encoding="utf-8")
    pd.DataFrame({"words": [json.dumps(SENTENCE)]}).to_csv(tmp_path / "w.csv", index=False)
    for file in ("w.jsonl", "w.csv"):
        assert load_corpus(tmp_path / file).fingerprint == expected
    with pytest.raises(
        InputError, match=r"row 1 .*word 1, 'Late', has 1 values; give valence, arousal, relevance"
    ):
        load_corpus(pd.DataFrame({"words": [[["Late", 1]]]}))
    with pytest.raises(InputError, match="'words' make the text"):
        load_corpus(pd.DataFrame({"words": [3], "text": ["three words here"]}))
    both = pd.DataFrame({"words": [3], "text": ["three words here"]})
    assert load_corpus(both, columns={"words": None}).texts == ["three words here"]


def test_ranges_are_the_users_to_declare():
    frame = pd.DataFrame({"text": ["a", "b"], "valence": [1, 9], "zeal": [3, None]})
    with pytest.raises(
        InputError, match=r"column 'valence': 9\.0 is outside the range -1 to 1; correct it, or declare"
    ):
        load_corpus(frame.assign(valence=[0, 9]))
    assert load_corpus(frame, ranges={"valence": (1, 9)}).dimensions == {"valence": (1, 9)}
    assert load_corpus(frame, columns={"valence": None}).dimensions == {}
    assert load_corpus(frame, ranges={"valence": (1, 9), "zeal": (0, 5)}).values("zeal")[0] == 3
    with pytest.raises(InputError, match=r"'zeal' has no range; pass ranges="):
        load_corpus(frame, columns={"zeal": "zeal", "valence": None})
    with pytest.raises(
        InputError,
        match=r"'valense' has a range but is no dimension \(there are: valence\); .* columns=\{'valense'",
    ):
        load_corpus(frame, ranges={"valence": (1, 9), "valense": (1, 9)})


def test_limit_is_a_seeded_sample():
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(40)], "split": ["train"] * 30 + ["test"] * 10})
    corpus = load_corpus(frame, limit=8, seed=1, split="train", name="few")
    assert corpus.name == "few" and len(corpus) == 8 and corpus.splits == {"train": 8}
    assert corpus.texts == load_corpus(frame, split="train").sample(8, seed=1).texts
    assert corpus.texts != load_corpus(frame, limit=8, seed=2, split="train").texts


FILES = {
    "none.csv": (None, "no such file"),
    "latin.csv": ("text\ngood\nTrès\n".encode("latin-1"), "line 3 is not UTF-8; save the file in that encoding"),
    "empty.csv": (b"", "the file is empty"),
    "header.csv": (b"text,label\n", "no texts"),
    "ragged.csv": (b"text,label\na,b\nc,d,e\n", "Expected 2 fields in line 3, saw 3; put texts that contain ','"),
    "twice.csv": (b"text,valence,valence\na,0,1\n", "column 'valence' is there twice"),
    "other.csv": (b"sentence;label\na;b\n", "holds the texts, columns={'text': ...}; there are: sentence;label"),
    "number.csv": (b"text,valence\na,0.5\nb,high\n", "row 2 (the first text is row 1), column 'valence': 'high' is"),
    "range.csv": (b"text,valence\na,0.5\nb,-3\n", "row 2 (the first text is row 1), column 'valence': -3.0 is outside"),
    "blank.csv": (b'text,label\n"",joy\n', "column 'text': the cell is empty; leave the row out"),
    "list.csv": (b"text,label\na,[joy\n", "column 'label': '[joy' is no list"),
    "spans.csv": (b"text,spans\na,{]\n", "column 'spans': '{]' is not JSON"),
    "spans2.csv": (b'text,spans\na,"[[0, 1]]"\n', "is no list of spans"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON"),
    "bad.json": (b'[{"text": "a"},\n{"text" "b"}]', "line 2 is not JSON"),
    "scalar.jsonl": (b'{"text": "a"}\n"b"\n', "entry 2 is no JSON object"),
    "bad.parquet": (b"text", "is no readable Parquet file"),
    "none.parquet": (None, "no such file"),
    "old.xls": (b"", "cannot read '.xls' files; give one of .csv, .tsv"),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, file: str):
    content, message = FILES[file]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_corpus(tmp_path / file)
    assert "\n" not in str(caught.value) and file in str(caught.value) and "None" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "sentense"}, "no column 'sentense' to read as 'text'; there are: sentence, V"),
        ({"text": "sentence", "valence": "v"}, "no column 'v' to read as 'valence'; there are: sentence, V"),
        ({"text": "sentence", "labels": ["V", "W"]}, "no column 'W' to read as 'labels'"),
        ({"text": "sentence", "valence": ["V"]}, "no column ['V'] to read as 'valence'"),
        ({"valence": "V"}, "say which column holds the texts"),
    ],
)
def test_unknown_columns_are_named_and_the_known_listed(columns: dict, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        load_corpus(pd.DataFrame({"sentence": ["a"], "V": [0.5]}), columns=columns)


def test_things_that_are_no_source_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="a int is no corpus; give a name, a path, a DataFrame"):
        load_corpus(3)
    with pytest.raises(InputError, match="holds none of emobank, goemotions"):
        load_corpus(tmp_path)
    with pytest.raises(InputError, match="folder= is for published corpora"):
        load_corpus("ground-truth", folder=tmp_path)
    with pytest.raises(
        InputError, match=r"emobank: .* does not hold emobank\.csv; give the folder that does"
    ):
        load_corpus("emobank", folder=tmp_path)
    for file in ("train.tsv", "dev.tsv", "test.tsv"):
        (tmp_path / file).write_text("text\tjoy\tid\n")
    with pytest.raises(InputError, match=r"goemotions: the files in .* are not as published .*'joy'"):
        load_corpus(tmp_path)


# ---- the published corpora, from their folders

PUBLISHED = {
    "emobank": dict(
        texts=10062, splits={"train": 8062, "validation": 1000, "test": 1000}, labels=0, dimensions=3
    ),
    "goemotions": dict(
        texts=54263, splits={"train": 43410, "validation": 5426, "test": 5427}, labels=28, dimensions=0
    ),
    "carer": dict(
        texts=20000, splits={"train": 16000, "validation": 2000, "test": 2000}, labels=6, dimensions=0
    ),
    "isear": dict(texts=7531, splits={}, labels=7, dimensions=1),
    "crowd_envent": dict(texts=6600, splits={}, labels=13, dimensions=22),
}


@pytest.fixture(scope="module")
def real(shared: Path, request: pytest.FixtureRequest) -> dict[str, Corpus]:
    folders = {"carer": "carer_emotion"}
    return {name: load_corpus(name, folder=shared / "data" / folders.get(name, name)) for name in PUBLISHED}


@pytest.mark.shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_corpora_are_read_whole(real: dict[str, Corpus], name: str):
    corpus, expected = real[name], PUBLISHED[name]
    assert corpus.name == name and len(corpus) == expected["texts"] and corpus.splits == expected["splits"]
    assert len(corpus.labels) == expected["labels"] and len(corpus.dimensions) == expected["dimensions"]
    assert (corpus.label_matrix().sum(0) > 0).all(), "every label occurs"
    assert corpus.single_label == (name not in ("emobank", "goemotions"))
    for dimension, (low, high) in corpus.dimensions.items():
        values = corpus.values(dimension)
        assert np.isfinite(values).mean() > 0.97 and low <= np.nanmin(values) < np.nanmax(values) <= high
    texts = pd.Series(corpus.texts).str.casefold().str.split().str.join(" ")
    straddles = pd.Series(corpus.groups).groupby(texts).nunique() > 1
    assert texts.duplicated().any() and all(len(text.split()) <= 2 for text in straddles[straddles].index)


@pytest.mark.shared
def test_emobank_against_its_own_files(real: dict[str, Corpus], shared: Path):
    corpus = real["emobank"]
    raw = pd.read_csv(shared / "data/emobank/emobank.csv", keep_default_na=False)
    assert corpus.texts == raw["text"].tolist() and "None" in corpus.texts
    for dimension, column in (("valence", "V"), ("arousal", "A"), ("dominance", "D")):
        np.testing.assert_array_equal(corpus.values(dimension), raw[column])
    meta = pd.read_csv(shared / "data/emobank/meta.tsv", sep="\t", quoting=csv.QUOTE_NONE).set_index("id")
    document = raw["id"].map(meta["document"]).to_numpy()
    of_a_document = document != "SemEval"  # single headlines, which share no document
    assert pd.Series(corpus.groups[of_a_document]).groupby(document[of_a_document]).nunique().max() == 1
    assert len(set(corpus.groups[~of_a_document])) > 1000
    assert set(corpus.data["source"][:]) == {"emobank/" + c for c in meta["category"].unique()}


@pytest.mark.shared
def test_goemotions_and_carer_against_their_own_files(real: dict[str, Corpus], shared: Path):
    names = (shared / "data/goemotions/labels.txt").read_text().split()
    assert real["goemotions"].labels == tuple(names)
    lines = (shared / "data/goemotions/test.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    expected = [
        (text, [names[int(n)] for n in ids.split(",")]) for text, ids, _ in (li.split("\t") for li in lines)
    ]
    test = real["goemotions"].select("test").data[:]
    assert list(zip(test["text"], test["labels"], strict=True)) == expected
    lines = (shared / "data/carer_emotion/val.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    dev = real["carer"].select("validation").data[:]
    assert [f"{text};{label[0]}" for text, label in zip(dev["text"], dev["labels"], strict=True)] == lines


@pytest.mark.shared
def test_isear_leaves_out_non_responses_and_mends_texts(real: dict[str, Corpus], shared: Path):
    raw = pd.read_csv(shared / "data/isear/isear.csv", keep_default_na=False)
    kept = set(real["isear"].texts)
    assert kept.isdisjoint(raw.loc[raw["possible_non_response"] == 1, "text"])
    left_out = [text for text in raw["text"] if published._isear_text(text) not in kept]
    assert max(map(len, left_out)) < 100 and len(left_out) == len(raw) - len(real["isear"])
    assert not any(mark in text for text in kept for mark in "|\\á")
    assert any("|" in text for text in raw["text"]), "the control: the file's texts are damaged"


@pytest.mark.shared
def test_crowd_envent_groups_by_writer_and_can_be_masked(real: dict[str, Corpus], shared: Path):
    raw = pd.read_csv(shared / "data/crowd_envent/generation.csv", keep_default_na=False)
    corpus = real["crowd_envent"]
    assert pd.Series(corpus.groups).groupby(raw["writer"]).nunique().max() == 1
    np.testing.assert_array_equal(corpus.values("relevance"), raw["goal_relevance"])
    np.testing.assert_array_equal(corpus.values("unpleasantness"), raw["unpleasantness"])
    masked = load_corpus(
        shared / "data/crowd_envent", columns={"text": "hidden_emo_text", "effort": None}, limit=50
    )
    assert masked.name == "crowd_envent" and "effort" not in masked.dimensions
    assert set(masked.texts) <= set(raw["hidden_emo_text"]) and not set(masked.texts) <= set(
        raw["generated_text"]
    )


@pytest.mark.shared
def test_published_corpora_are_found_by_any_of_their_names(shared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EMOPROBE_DATA", str(shared / "data"))
    for spelling in ("EmoBank", "dair-ai/emotion", "emotion", "ISEAR", "crowd-enVENT"):
        assert load_corpus(spelling, limit=5).name in PUBLISHED
    by_folder = load_corpus(shared / "data" / "carer_emotion", split="val", limit=5)
    assert by_folder.name == "carer" and by_folder.texts == load_corpus("carer", split="dev", limit=5).texts
    assert load_corpus("carer", folder=shared / "data", limit=5).name == "carer"


# ---- the published corpora, from the hub and from their addresses


def test_the_hubs_go_emotions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    features = Features(
        {
            "text": Value("string"),
            "labels": List(ClassLabel(names=list(published.GOEMOTIONS))),
            "id": Value("string"),
        }
    )
    rows = {"train": ("a", [0, 27], "id1"), "validation": ("b", [5], "id2"), "test": ("c", [27], "id3")}
    parts = {
        split: Dataset.from_dict({"text": [text], "labels": [labels], "id": [key]}, features=features)
        for split, (text, labels, key) in rows.items()
    }
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or DatasetDict(parts))
    for split, (text, labels, key) in rows.items():
        line = f"{text}\t{','.join(map(str, labels))}\t{key}\n"
        (tmp_path / f"{split.replace('validation', 'dev')}.tsv").write_text(line)
    corpora = [load_corpus(n) for n in ("goemotions", "go_emotions", "google-research-datasets/go_emotions")]
    assert calls == [(("google-research-datasets/go_emotions", "simplified"), {})] * 3
    assert len({c.fingerprint for c in [*corpora, load_corpus(tmp_path)]}) == 1
    assert corpora[0].data["labels"][:] == [["admiration", "neutral"], ["caring"], ["neutral"]]
    assert corpora[0].groups.tolist() == ["id1", "id2", "id3"] and len(corpora[0].labels) == 28
    assert load_corpus("go-emotions", split="dev").texts == ["b"]


def test_the_hubs_emotion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(published.CARER))})
    parts = {
        split: Dataset.from_dict({"text": [f"i feel {split}"], "label": [i]}, features=features)
        for i, split in enumerate(("train", "validation", "test"))
    }
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or DatasetDict(parts))
    for file, header, split, label in (
        ("train", "", "train", "sadness"), ("val", "text;label_name\n", "validation", "joy"), ("test", "", "test", "love")
    ):  # fmt: skip
        (tmp_path / f"{file}.txt").write_text(f"{header}i feel {split};{label}\n")
    corpus = load_corpus("dair-ai/emotion")
    assert calls == [(("dair-ai/emotion", "split"), {})]
    assert corpus.fingerprint == load_corpus("carer", folder=tmp_path).fingerprint
    assert corpus.labels == published.CARER and corpus.splits == {"train": 1, "validation": 1, "test": 1}


def test_any_other_name_is_the_hubs(monkeypatch: pytest.MonkeyPatch):
    calls = []
    data = Dataset.from_dict({"sentence": ["a", "b"], "mood": ["low", "high"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or data)
    corpus = load_corpus("someone/moods", split="train", columns={"text": "sentence", "labels": "mood"})
    assert calls == [(("someone/moods",), {"split": "train"})]
    assert (
        corpus.name == "someone/moods" and corpus.labels == ("high", "low") and corpus.splits == {"train": 2}
    )


def test_a_hub_out_of_reach_is_one_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(published, "_get", unreachable)
    for name in PUBLISHED:
        with pytest.raises(InputError) as caught:
            load_corpus(name)
        assert str(caught.value) == (
            f"{name}: could not be fetched (no route to host); download it elsewhere and pass folder=, or set "
            f"EMOPROBE_DATA to a folder that holds it as {name}/"
        )
    with pytest.raises(
        InputError,
        match=r"^nobody/emobnk: is no file here, none of emobank, .*\(no route to host\); check the name or the path",
    ):
        load_corpus("nobody/emobnk")


def test_an_offline_machine_gets_the_same_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for name in ("carer", "isear"):
        with pytest.raises(InputError, match=rf"^{name}: could not be fetched \(.+\); download it elsewhere"):
            load_corpus(name)


ISEAR_HEADER = (
    "ID|CITY|COUN|SUBJ|SEX|AGE|RELI|PRAC|FOCC|MOCC|FIEL|EMOT|WHEN|LONG|INTS|ERGO|TROPHO|TEMPER|EXPRES|MOVE|EXP1|EXP2|EXP10|"
    "PARAL|CON|EXPC|PLEA|PLAN|FAIR|CAUS|COPING|MORL|SELF|RELA|VERBAL|NEUTRO|Field1|Field3|Field2|MYKEY|SIT|STATE|"
)


def isear_line(respondent: str, emotion: str, intensity: int, text: str, end: str = "|1|") -> str:
    fields = ISEAR_HEADER.split("|")
    values = dict.fromkeys(fields[:40], "1") | {"ID": respondent, "Field1": emotion, "INTS": str(intensity)}
    return "|".join(values[field] for field in fields[:40]) + f"|{text}{end}"


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Small files in the published layouts, at the published addresses; each may be fetched once."""
    isear = [
        isear_line("11001", "joy", 3, "When she came back from á the harbour. "),
        isear_line("11001", "fear", 0, "[ No response.]"),
        isear_line("11002", "anger", 0, 'He called it \\an honest mistake\\" and á|left."', end=""),
    ]
    crowd = "\t".join(
        [
            "text_id",
            "prolific_id",
            "emotion",
            "generated_text",
            "hidden_emo_text",
            "intensity",
            *published.APPRAISALS,
        ]
    )
    crowd += (
        "\n"
        + "\t".join(["7", "abc", "no-emotion", "I had lunch.", "I had lunch.", "2", *["3"] * 20, "5"])
        + "\n"
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("corpus/crowd-enVent_generation.tsv", crowd)
    emobank = b'id,split,V,A,D,text\nbook_0_4,train,3.0,2.5,3,"Oh, no."\nSemEval_8,dev,1,5,3,None\n'
    meta = b"id\tdocument\tcategory\nbook_0_4\tbook\tfiction\nSemEval_8\tSemEval\tSemEval\n"
    files = {
        published.EMOBANK + "emobank.csv": emobank,
        published.EMOBANK + "meta.tsv": meta,
        published.ISEAR + "isear.csv": "\n".join([ISEAR_HEADER, *isear, ""]).encode(),
        published.CROWD_ENVENT: archive.getvalue(),
    }  # fmt: skip
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(published, "_get", files.pop)
    return files


def test_emobank_from_its_address(addresses: dict[str, bytes]):
    corpus = load_corpus("emobank")
    assert not any("EmoBank" in address for address in addresses), "both files were fetched"
    assert corpus.texts == ["Oh, no.", "None"] and corpus.values("arousal").tolist() == [2.5, 5.0]
    assert corpus.groups.tolist() == ["book", "SemEval_8"] and corpus.splits == {"train": 1, "validation": 1}
    assert corpus.data["source"][:] == ["emobank/fiction", "emobank/SemEval"]
    assert load_corpus("emobank").fingerprint == corpus.fingerprint, "the second time from the cache"


def test_isear_from_its_address(addresses: dict[str, bytes], tmp_path: Path):
    corpus = load_corpus("isear")
    assert corpus.texts == [
        "When she came back from the harbour.",
        'He called it "an honest mistake" and left.',
    ]
    assert corpus.data["labels"][:] == [["joy"], ["anger"]] and corpus.groups.tolist() == ["11001", "11002"]
    np.testing.assert_array_equal(corpus.values("intensity"), [3, NAN])
    tidy = pd.DataFrame(
        {"respondent": [0, 0, 1], "emotion": ["joy", "fear", "anger"], "INTS": [3, 0, 0],
         "text": [corpus.texts[0], "[ No response.]", corpus.texts[1]]}
    )  # fmt: skip
    (tmp_path / "tidy").mkdir()
    tidy.to_csv(tmp_path / "tidy" / "isear.csv", index=False)
    assert load_corpus("isear", folder=tmp_path / "tidy").fingerprint == corpus.fingerprint
    (tmp_path / "tidy" / "emobank.csv").touch()
    two = (tmp_path / "tidy").rename(tmp_path / "ISEAR")
    assert load_corpus(two).fingerprint == corpus.fingerprint, (
        "where two would fit, the folder's name decides"
    )


def test_crowd_envent_from_its_address(addresses: dict[str, bytes]):
    corpus = load_corpus("crowd-envent")
    assert corpus.texts == ["I had lunch."] and corpus.data["labels"][0] == ["no-emotion"]
    assert (
        corpus.groups.tolist() == ["abc"] and corpus.values("relevance") == 3 and corpus.values("effort") == 5
    )
    assert load_corpus("crowd_envent").fingerprint == corpus.fingerprint


# ---- generated texts


def test_generated_texts_are_a_corpus_with_its_latents():
    corpus = load_corpus("ground-truth", limit=60, seed=5)
    assert len(corpus) == 60 and corpus.name == "ground-truth" and corpus.single_label
    assert corpus.dimensions == {
        "valence": (-1, 1),
        "arousal": (0, 1),
        "relevance": (0, 1),
        "intensity": (0, 1),
    }
    assert len(set(corpus.groups)) > 1 and all(corpus.data["spans"][:])
    for row in corpus.data:
        assert all(span["valence"] == row["valence"] for span in row["spans"])
    assert load_corpus("ground-truth", limit=60, seed=6).fingerprint != corpus.fingerprint
    assert load_corpus("ground-truth", limit=3, columns={"intensity": None}).dimensions.keys() == {
        "valence",
        "arousal",
        "relevance",
    }
    with pytest.raises(InputError, match="ask for at least one"):
        load_corpus("ground-truth", limit=0)
