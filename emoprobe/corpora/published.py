"""The published corpora: where each one is, and what its columns mean.

Each is read from a folder, as its authors publish it or as tidier copies have it, and fetched first where
nobody gave one. Nothing of a corpus is part of this package; the user gets it from its source, under its
licence.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pandas as pd
from huggingface_hub import get_session

from emoprobe.artefacts import write_bytes
from emoprobe.corpora.tables import Table, from_dataset, read_delimited
from emoprobe.errors import InputError
from emoprobe.files import read_text
from emoprobe.places import hub

EMOBANK = "https://raw.githubusercontent.com/JULIELab/EmoBank/master/corpus/"
ISEAR = "https://raw.githubusercontent.com/sinmaniphel/py_isear_dataset/master/"
MOST = 2**28
"""Bytes that a file out of an archive may take; the corpus has 10 MB."""
CROWD_ENVENT = "https://www.romanklinger.de/data-sets/crowd-enVent2023.zip"


@dataclass(frozen=True)
class Published:
    """Say how to read a corpus from a folder, where it comes from, and what its columns are called in the
    schema."""

    read: Callable[[Path], Table]
    fetch: Callable[[], Path | Table]
    marks: tuple[tuple[str, ...], ...]
    """The files by which a folder is known: all of any one of these."""
    columns: dict[str, str]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds the corpus."""
        return any(all((folder / file).is_file() for file in files) for files in self.marks)


def fetched(name: str, corpus: Published) -> Path | Table:
    """Fetch a corpus; raise InputError with the reason and the way out where that fails."""
    try:
        return corpus.fetch()
    except Exception as error:  # whatever the hub's clients raise: their classes change with their versions
        raise InputError(
            f"{name}: could not be fetched ({first_line(error)}); download it elsewhere and pass folder=, or "
            f"set EMOPROBE_DATA to a folder that holds it as {name}/"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _hub(*names: str) -> Table:
    with hub():
        return from_dataset(datasets.load_dataset(*names))


def _download(name: str, addresses: dict[str, str]) -> Path:
    """Download files into the cache of `datasets`, unless they are there, and return their folder."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "emoprobe" / name
    for file, address in addresses.items():
        if not (folder / file).exists():
            write_bytes(folder / file, _get(address))
    return folder


def _get(address: str) -> bytes:
    # load_dataset("csv", data_files=address) would want aiohttp, which `datasets` no longer brings along
    response = get_session().get(address, follow_redirects=True)
    response.raise_for_status()
    return bytes(response.content)


# EmoBank: Buechel & Hahn 2017 (EACL), https://github.com/JULIELab/EmoBank


def _emobank(folder: Path) -> Table:
    """Read sentences with the document each was taken from; a headline of SemEval's is a document of its
    own."""
    frame = read_delimited(folder / "emobank.csv", ",")
    frame["document"] = frame["id"].str.replace(
        r"_\d+_\d+$", "", regex=True
    )  # the ids end in character offsets
    frame["source"] = "emobank"
    if (folder / "meta.tsv").exists():
        genre = read_delimited(folder / "meta.tsv", "\t", quoting=csv.QUOTE_NONE).set_index("id")["category"]
        frame["source"] = "emobank/" + frame["id"].map(genre).fillna("unknown")
    return Table(frame)


# GoEmotions: Demszky et al. 2020 (ACL), https://huggingface.co/datasets/google-research-datasets/go_emotions

GOEMOTIONS = tuple(
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization "
    "relief remorse sadness surprise neutral".split()
)


def _goemotions(folder: Path) -> Table:
    parts = []
    for split in ("train", "dev", "test"):
        part = read_delimited(
            folder / f"{split}.tsv", "\t", names=("text", "labels", "id"), quoting=csv.QUOTE_NONE
        )
        parts.append(part.assign(split=split))
    frame = pd.concat(parts, ignore_index=True)
    frame["labels"] = pd.Series([[GOEMOTIONS[int(n)] for n in cell.split(",")] for cell in frame["labels"]])
    return Table(frame, {"labels": GOEMOTIONS})


# CARER: Saravia et al. 2018 (EMNLP), https://huggingface.co/datasets/dair-ai/emotion

CARER = ("sadness", "joy", "love", "anger", "fear", "surprise")


def _carer(folder: Path) -> Table:
    parts = []
    for split in ("train", "val", "test"):
        part = read_delimited(folder / f"{split}.txt", ";", names=("text", "label"), quoting=csv.QUOTE_NONE)
        header = part.iloc[0].tolist() == ["text", "label_name"]  # which only some copies have
        parts.append(part.iloc[int(header) :].assign(split=split))
    return Table(pd.concat(parts, ignore_index=True), {"label": CARER})


# ISEAR: Scherer & Wallbott 1994 (JPSP 66), as in https://github.com/sinmaniphel/py_isear_dataset

EMOTIONS_OF_ISEAR = ("joy", "fear", "anger", "sadness", "disgust", "shame", "guilt")
ISEAR_COLUMNS = 40
"""Columns of the data bank's file before its texts, which may contain the separator."""
NO_RESPONSE = re.compile(
    r"\W*(no (response|description|answer)|not applicable( to myself)?|nothing|none|blank|never"
    r"|(i )?(have )?never (felt|experienced|really had)\b[^.]{0,80}"
    r"|(i )?(do not|don't|can ?not|can't) (know|remember|recall|think of)\b[^.]{0,60})\W*",
    re.IGNORECASE,
)


def _isear(folder: Path) -> Table:
    """Read reports, leaving out those that say no more than that there is nothing to report."""
    path = folder / "isear.csv"
    lines = read_text(path).splitlines()
    if lines and lines[0].startswith("ID|CITY|"):
        header, *rows = [line.split("|", ISEAR_COLUMNS) for line in lines if line]
        frame = pd.DataFrame(rows, columns=[*header[:-1], "text"])
        frame = frame.rename(columns={"Field1": "emotion", "ID": "respondent"})
    else:
        frame = read_delimited(path, ",")
    frame["text"] = [_isear_text(text) for text in frame["text"]]
    frame["intensity"] = frame["INTS"].replace("0", "")  # 0: no answer
    frame = frame[~frame["text"].str.fullmatch(NO_RESPONSE)]
    return Table(frame.reset_index(drop=True), {"emotion": EMOTIONS_OF_ISEAR})


def _isear_text(text: str) -> str:
    r"""Mend what an export did to the texts: line breaks became á, or | where there are quotes, and these
    \words\"."""
    text = re.sub(r"\|\d\|$", "", text)
    text = re.sub(r"\bá\b", " ", text).replace("|", " ").replace('\\"', "\\")
    text = text[:-1] if "\\" in text and text.endswith('"') else text
    return " ".join(text.replace("\\", '"').split())


# crowd-enVENT: Troiano, Oberländer & Klinger 2023 (CL 49), https://www.romanklinger.de/data-sets/

EMOTIONS_OF_CROWD_ENVENT = tuple(
    "anger boredom disgust fear guilt joy no-emotion pride relief sadness shame surprise trust".split()
)
APPRAISALS = tuple(
    "suddenness familiarity predict_event pleasantness unpleasantness goal_relevance chance_responsblt "
    "self_responsblt other_responsblt predict_conseq goal_support urgency self_control other_control "
    "chance_control accept_conseq standards social_norms attention not_consider effort".split()
)
RELEVANCE = {"goal_relevance": "relevance"}


def _crowd_envent(folder: Path) -> Table:
    """Read the writers' own texts and judgements; columns={"text": "hidden_emo_text"} has emotion words
    masked."""
    if (folder / "generation.csv").exists():
        frame = read_delimited(folder / "generation.csv", ",")
    else:
        frame = read_delimited(folder / "crowd-enVent_generation.tsv", "\t").rename(
            columns={"prolific_id": "writer"}
        )
    return Table(frame, {"emotion": EMOTIONS_OF_CROWD_ENVENT})


def _fetch_crowd_envent() -> Path:
    folder = _download("crowd_envent", {"crowd-enVent2023.zip": CROWD_ENVENT})
    file = folder / "crowd-enVent_generation.tsv"
    if not file.exists():
        with zipfile.ZipFile(folder / "crowd-enVent2023.zip") as archive:
            inside = archive.getinfo(f"corpus/{file.name}")
            if inside.file_size > MOST:
                raise InputError(
                    f"{inside.filename} would take {inside.file_size} bytes: this is another archive"
                )
            write_bytes(file, archive.read(inside))  # which stops at the size stated
    return folder


PUBLISHED = {
    "emobank": Published(
        _emobank,
        lambda: _download("emobank", {file: EMOBANK + file for file in ("emobank.csv", "meta.tsv")}),
        (("emobank.csv",),),
        {"text": "text", "valence": "V", "arousal": "A", "dominance": "D"}
        | {"group": "document", "source": "source", "split": "split"},
        dict.fromkeys(("valence", "arousal", "dominance"), (1.0, 5.0)),
    ),
    "goemotions": Published(
        _goemotions,
        lambda: _hub("google-research-datasets/go_emotions", "simplified"),
        (("train.tsv", "dev.tsv", "test.tsv"),),
        {"text": "text", "labels": "labels", "group": "id", "split": "split"},
    ),
    "carer": Published(
        _carer,
        lambda: _hub("dair-ai/emotion", "split"),
        (("train.txt", "val.txt", "test.txt"),),
        {"text": "text", "labels": "label", "split": "split"},
    ),
    "isear": Published(
        _isear,
        lambda: _download("isear", {"isear.csv": ISEAR + "isear.csv"}),
        (("isear.csv",),),
        {"text": "text", "labels": "emotion", "group": "respondent", "intensity": "intensity"},
        {"intensity": (1.0, 4.0)},
    ),
    "crowd_envent": Published(
        _crowd_envent,
        _fetch_crowd_envent,
        (("generation.csv",), ("crowd-enVent_generation.tsv",)),
        {"text": "generated_text", "labels": "emotion", "group": "writer", "intensity": "intensity"}
        | {RELEVANCE.get(name, name): name for name in APPRAISALS},
        dict.fromkeys(("intensity", *(RELEVANCE.get(name, name) for name in APPRAISALS)), (1.0, 5.0)),
    ),
}
