"""Directions out of activations: linear probes with their controls, and what they read."""

from emoprobe.probes.difference_maps import DifferenceMap, difference_map
from emoprobe.probes.direction import Direction
from emoprobe.probes.emotion_vectors import EmotionVectors, emotion_vectors
from emoprobe.probes.fit import fit_probes
from emoprobe.probes.geometry import Geometry
from emoprobe.probes.heat_maps import HeatMap, heat_map
from emoprobe.probes.hub import push_to_hub
from emoprobe.probes.learning_curve import LearningCurve, learning_curve
from emoprobe.probes.lens import logit_lens, vector_lens
from emoprobe.probes.probe_set import ProbeSet, load_probes
from emoprobe.probes.readout import Trace, trace
from emoprobe.probes.reference_corpus import Reference, reference
from emoprobe.probes.scorer import CorpusScores, score_corpus
from emoprobe.probes.similarity import activation_similarity, layer_similarity, model_similarity
from emoprobe.probes.stability import Stability, stability
from emoprobe.probes.transfer import Transfer, transfer

__all__ = [
    "CorpusScores",
    "DifferenceMap",
    "Direction",
    "EmotionVectors",
    "Geometry",
    "HeatMap",
    "LearningCurve",
    "ProbeSet",
    "Reference",
    "Stability",
    "Trace",
    "Transfer",
    "activation_similarity",
    "difference_map",
    "emotion_vectors",
    "fit_probes",
    "heat_map",
    "layer_similarity",
    "learning_curve",
    "load_probes",
    "logit_lens",
    "model_similarity",
    "push_to_hub",
    "reference",
    "score_corpus",
    "stability",
    "trace",
    "transfer",
    "vector_lens",
]
