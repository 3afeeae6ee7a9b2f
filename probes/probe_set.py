"""The fitted artefact: directions, read-outs and what they were found worth.

A `ProbeSet` is a value. It remembers which model and corpus it came from, refuses to be used with a model of another shape,
and is written to one file without pickle. How it is fitted is in `fit`, how it is shown in `summary`.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from emoprobe.artefacts import read_artefact, write_artefact
from emoprobe.checks import check_layers, check_names, check_record, check_tensors, reading
from emoprobe.errors import InputError
from emoprobe.layers import nearest_to_depth, resolve_layers
from emoprobe.places import is_repo
from emoprobe.probes.direction import Direction
from emoprobe.records import check_concept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.models.live import LiveModel
    from emoprobe.probes.geometry import Geometry

KIND, VERSION = "probe set", 2
COLUMNS = (
    "layer concept metric value low high chance shuffled shuffled_low shuffled_high shuffled_best_high p q "
    "layer0 layer0_gain_low layer0_gain_high bag_of_words bag_of_words_gain_low bag_of_words_gain_high "
    "random_features random_features_gain_low random_features_gain_high "
    "control_task selectivity selectivity_low selectivity_high "
    "split_half split_half_shuffled split_half_shuffled_high n groups"
).split()
"""Columns of `ProbeSet.scores`. A file of an earlier version lacks some, which are then NaN."""
LABELS = "(labels)"
"""The concept under which scores over all labels are listed."""
CONFOUNDS = (
    "layer concept confound metric chance value alone alone_low alone_high p q held held_low held_high "
    "alone_held held_gain_low held_gain_high left compared"
).split()
"""Columns of `ProbeSet.confounds`."""
RECORD = {
    **dict.fromkeys(("model", "fingerprint", "digest"), str),
    **{
        "n_layers": int,
        "layers": [int],
        "concepts": [str],
        "kinds": {...: str},
        "ranges": dict,
        "metadata": dict,
    },
    "scores": {"rows": [list], "columns": [str]},
}
"""What the record of a file has at the least."""
ABOUT_THE_FILE = ("kind", "version", "versions", "digest")
"""What its digest does not cover."""
TENSORS = ("directions", "scale", "offset", "reference_mean", "reference_std", "residual_norms")


@dataclass(frozen=True, eq=False, repr=False)
class ProbeSet:
    """Hold a linear probe for each concept at each layer. `fit_probes` makes one, `load_probes` reads one.

    All tensors are float32. A probe's direction has unit norm, except that it is zero where the features said nothing. Raises
    `InputError` where shapes do not agree.
    """

    model: str
    n_layers: int
    fingerprint: str
    layers: tuple[int, ...]
    concepts: tuple[str, ...]
    kinds: Mapping[str, str]
    """Concept -> "label" (its read-out is a logit) or "dimension" (in the annotation's units)."""
    ranges: Mapping[str, tuple[float, float]]
    """Dimension -> (lowest, highest) annotation."""
    directions: Tensor
    """u, (layers, concepts, d_model)."""
    scale: Tensor
    """(layers, concepts): the read-out of x is scale · (u·x) + offset."""
    offset: Tensor
    reference_mean: Tensor
    """(layers, d_model): mean residual vector over the tokens of the corpus."""
    reference_std: Tensor
    """(layers, concepts): standard deviation of u·x over tokens of the corpus."""
    residual_norms: Tensor
    """(layers,): mean L2 norm of the residual stream over the tokens of the corpus."""
    scores: pd.DataFrame
    """One row per layer, concept and metric: layer, concept, metric ("pearson_r", "auc", "accuracy", "macro_auc"), value, low,
    high (95% interval over resampled groups), chance, shuffled, shuffled_low, shuffled_high (mean and 95% range with shuffled
    annotations), shuffled_best_high (upper end of that range for the best of all layers), p (one-sided, that the best of all
    layers is as high with shuffled annotations, see `validation.permutation_p`), q (p of the concept's best layer, corrected
    for all concepts), layer0, layer0_gain_low, layer0_gain_high (the embedding's score, and the 95% interval of value −
    layer0 on the same resamples), bag_of_words and random_features (see `random_features`) and their gains likewise,
    control_task (score of a control task, see `control_task`), selectivity, selectivity_low, selectivity_high (value −
    control_task and its interval), split_half (mean cosine of directions fitted to halves of the groups), split_half_shuffled,
    split_half_shuffled_high (mean and upper end of the 95% range with shuffled annotations), n (texts), groups. Scores over all
    labels have the concept "(labels)". What was not measured is NaN."""
    metadata: Mapping[str, Any]
    """Estimator and options, corpus, package versions, seed."""
    basis: str = "raw"
    """Coordinates of the residual stream that the probes were fitted in, see `LiveModel.basis`."""
    confounds: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=CONFOUNDS))
    """One row per concept and candidate for what else its annotation goes with, at the concept's best layer; empty where that
    was not checked. layer, concept, confound (see `confounds.candidates`; "group" compares within groups), metric, chance,
    value (the probe's score; of all labels the mean AUC), alone, alone_low, alone_high (what the candidate alone tells of
    held-out groups, and its 95% interval), p, q (one-sided, that it tells as much of shuffled annotations; q corrected for all
    candidates and concepts), held, held_low, held_high (the probe's score with the candidate held constant), alone_held (what
    the candidate itself still tells then), held_gain_low, held_gain_high (interval of held − alone_held), left (the share of
    the annotation's variance that is left then; 0: they cannot be told apart in these texts), compared (how many texts that
    amounts to; of a label, of those that carry it or do not, whichever are rarer). What was not measured is NaN."""

    def __post_init__(self) -> None:
        layers, concepts, width = len(self.layers), len(self.concepts), self.directions.shape[-1]
        shapes = {
            "directions": (layers, concepts, width),
            "scale": (layers, concepts),
            "offset": (layers, concepts),
            "reference_mean": (layers, width),
            "reference_std": (layers, concepts),
            "residual_norms": (layers,),
        }
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise InputError(
                    f"a probe set of {layers} layers and {concepts} concepts needs {name} {shape}, not {found}"
                )

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.directions.shape[-1])

    # Reading ---------------------------------------------------------------------------------------------------------

    def __getitem__(self, concept: str) -> Direction:
        """Return a concept's direction at all layers. Raises `InputError` for a concept that was not probed for."""
        column = self.concept_index(concept)
        return Direction(concept, self.layers, self.directions[:, column], self.residual_norms, self.basis)

    def __contains__(self, concept: object) -> bool:
        return concept in self.concepts

    def __iter__(self) -> Iterator[str]:
        return iter(self.concepts)

    def __len__(self) -> int:
        return len(self.concepts)

    def concept_index(self, concept: str) -> int:
        """Return the column of a concept. Raises `InputError` for one that was not probed for."""
        check_concept(concept, self.concepts)
        return self.concepts.index(concept)

    def layer_index(self, layer: int | float) -> int:
        """Return the row of a layer, given as index or fraction. Raises `InputError` where no probe was fitted."""
        (index,) = resolve_layers(layer, self.n_layers)
        if index not in self.layers:
            raise InputError(
                f"no probe was fitted at layer {index}: there are layers {', '.join(map(str, self.layers))}"
            )
        return self.layers.index(index)

    def read_out(self, stream: Tensor, layer: int | float) -> Tensor:
        """Read a residual stream (…, d_model) at `layer` out: (…, concepts), in the units of each concept.

        Computed in float32, or in float64 where the stream is.
        """
        row = self.layer_index(layer)
        dtype = torch.promote_types(stream.dtype, torch.float32)
        directions, scale, offset = (
            part[row].to(stream.device, dtype) for part in (self.directions, self.scale, self.offset)
        )
        return scale * (stream.to(dtype) @ directions.T) + offset

    def best_layer(self, concept: str | None = None) -> int:
        """Return the layer with the highest score, the shallowest of equals; without a concept, for all of them on average.

        Averages are over r for dimensions and 2·AUC - 1 for labels, which like r is 0 at chance and 1 at best. Where nothing
        was scored it is the layer closest to two thirds of the depth (Sofroniew et al. 2026, arXiv 2604.07729).
        """
        if self.scores.empty:
            return nearest_to_depth(self.layers, self.n_layers)
        scores = self.scores[self.scores.concept != LABELS]
        if concept is not None:
            scores = self.scores[self.scores.concept == concept]
            if not len(scores):
                self.concept_index(concept)
        effect = scores.value.where(scores.metric != "auc", 2 * scores.value - 1)
        means = effect.groupby(scores.layer).mean().reindex(list(self.layers)).fillna(-1)
        return self.layers[int(means.to_numpy().argmax())]

    def check_model(self, model: LiveModel) -> None:
        """Refuse a model of another shape or basis with `InputError`; warn of one with other weights or vocabulary."""
        if (model.d_model, model.n_layers) != (self.d_model, self.n_layers):
            raise InputError(
                f"these probes were fitted on {self.model} (width {self.d_model}, {self.n_layers} blocks) and do not fit "
                f"{model.name} (width {model.d_model}, {model.n_layers} blocks): fit new ones with fit_probes"
            )
        model.check_basis(self.basis, "these probes")
        if model.fingerprint() != self.fingerprint:
            warnings.warn(
                f"these probes were fitted on {self.model}, whose weights or vocabulary differ from those of {model.name}",
                stacklevel=3,
            )

    def logit_lens(
        self, model: LiveModel, layer: int | float, top: int = 10, *, words: str = "text", merge: bool = False
    ) -> pd.DataFrame:
        """Return the tokens that each direction promotes and suppresses; see `emoprobe.probes.lens.logit_lens`."""
        from emoprobe.probes.lens import logit_lens

        return logit_lens(model, self, layer, top, words=words, merge=merge)

    def geometry(
        self, layer: int | float, norms: Mapping[str, Mapping[str, float]] | None = None
    ) -> Geometry:
        """Return cosines and principal components of the directions; see `emoprobe.probes.geometry.geometry`."""
        from emoprobe.probes.geometry import geometry

        return geometry(self, layer, norms)

    # Showing ---------------------------------------------------------------------------------------------------------

    @property
    def frame(self) -> pd.DataFrame:
        """The scores, one row per layer, concept and metric."""
        return self.scores

    def report(self) -> str:
        """Say in words what each probe was found worth, beside its controls."""
        from emoprobe.probes.summary import report

        return report(self)

    def plot(self, concepts: list[str] | None = None) -> Figure:
        """Draw scores by layer with their intervals and controls; see `emoprobe.probes.summary.plot`."""
        from emoprobe.probes.summary import plot

        return plot(self, concepts)

    def __repr__(self) -> str:
        listed = ", ".join(self.concepts[:8]) + (", …" if len(self.concepts) > 8 else "")
        return (
            f"<ProbeSet of {self.model}: {len(self.concepts)} concepts ({listed}) at layers "
            f"{', '.join(map(str, self.layers))}, fitted on {self.metadata.get('corpus', 'unknown texts')}>"
        )

    def _repr_html_(self) -> str:
        from emoprobe.probes.summary import table

        return table(self)

    # Keeping ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the probe set to one `.safetensors` file, whole or not at all; equal content gives equal bytes."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        frames = {"scores": _table(self.scores), "confounds": _table(self.confounds)}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*TENSORS, *frames)}
        record = {**plain, **frames}
        return write_artefact(path, KIND, VERSION, tensors, {**record, "digest": _digest(tensors, record)})


def load_probes(path: str | Path, *, revision: str | None = None) -> ProbeSet:
    """Read a probe set that `ProbeSet.save` wrote, or that `push_to_hub` pushed.

    `path` is a file, or a repository "user/name" of the Hugging Face Hub, at the `revision` given (a branch, tag or commit).
    Raises `InputError` for a file that is missing, damaged, of another kind or written by a later version, and where the hub
    does not give it.
    """
    from emoprobe.probes.hub import fetched

    if isinstance(path, str) and is_repo(path) and not Path(path).exists():
        path = fetched(path, revision)
    tensors, record = read_artefact(path, KIND, VERSION)
    with reading(path, KIND):
        if record["digest"] != _digest(tensors, record):
            raise InputError("its content is not what was written")
        check_record(record, RECORD)
        check_tensors({name: tensors[name] for name in TENSORS})
        check_names(record["concepts"])
        check_layers(record["layers"], record["n_layers"])
        return ProbeSet(
            model=record["model"],
            n_layers=record["n_layers"],
            fingerprint=record["fingerprint"],
            layers=tuple(record["layers"]),
            concepts=tuple(record["concepts"]),
            kinds={name: record["kinds"][name] for name in record["concepts"]},
            ranges={name: _range(bounds) for name, bounds in record["ranges"].items()},
            scores=_typed(record["scores"], COLUMNS),
            confounds=_typed(record.get("confounds", {"rows": [], "columns": []}), CONFOUNDS),
            metadata=record["metadata"],
            basis=record.get("basis", "raw"),
            **{name: tensors[name] for name in TENSORS},
        )


def _range(bounds: Sequence[float]) -> tuple[float, float]:
    low, high = bounds
    if not -math.inf < low < high < math.inf:
        raise InputError(f"the range {low} to {high} is none")
    return low, high


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    cells = frame.astype(object).where(frame.notna(), None)  # JSON has no NaN
    return {"columns": cells.columns.tolist(), "rows": cells.to_numpy().tolist()}


def _typed(table: Mapping[str, Any], columns: Sequence[str]) -> pd.DataFrame:
    # Missing numbers come back from JSON as None, which would leave their columns untyped.
    other = dict.fromkeys(("layer", "n", "groups"), "int64")
    other |= dict.fromkeys(("concept", "metric", "confound"), "str")
    frame = pd.DataFrame(table["rows"], columns=table["columns"])
    further = [str(column) for column in frame if column not in columns]
    frame = frame.reindex(columns=[*columns, *further])
    return frame.astype({column: other.get(str(column), "float64") for column in frame})


def _digest(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    described = {name: record[name] for name in record if name not in ABOUT_THE_FILE}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
