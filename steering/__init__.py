"""What directions do to behaviour: edits of the residual stream, measures, dose–response."""

from emoprobe.steering.causal import Specificity, specificity
from emoprobe.steering.dose_response import Sweep
from emoprobe.steering.edits import add, clamp, only_where, project_out, rotate, scheduled, steer
from emoprobe.steering.equal_cost import EqualCost, at_equal_cost
from emoprobe.steering.generations import generations, lexicon, overlap
from emoprobe.steering.interchange import (
    export_gguf,
    export_steering_vectors,
    import_gguf,
    import_steering_vectors,
)
from emoprobe.steering.leak import ContentLeak, content_leak
from emoprobe.steering.measures import Measure, coherence, continuation, kl, log_probabilities, nll, read_out
from emoprobe.steering.norms import residual_norms
from emoprobe.steering.preference_steering import PreferenceShift, steer_preferences
from emoprobe.steering.preferences import Preferences, activities, preferences, probe_correlation
from emoprobe.steering.row_wise import RowWise
from emoprobe.steering.sweep import NonFiniteWarning, sweep

__all__ = [
    "ContentLeak",
    "EqualCost",
    "Measure",
    "NonFiniteWarning",
    "PreferenceShift",
    "Preferences",
    "RowWise",
    "Specificity",
    "Sweep",
    "activities",
    "add",
    "at_equal_cost",
    "clamp",
    "coherence",
    "content_leak",
    "continuation",
    "export_gguf",
    "export_steering_vectors",
    "generations",
    "import_gguf",
    "import_steering_vectors",
    "kl",
    "lexicon",
    "log_probabilities",
    "nll",
    "only_where",
    "overlap",
    "preferences",
    "probe_correlation",
    "project_out",
    "read_out",
    "residual_norms",
    "rotate",
    "scheduled",
    "specificity",
    "steer",
    "steer_preferences",
    "sweep",
]
