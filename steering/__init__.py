"""What directions do to behaviour: edits of the residual stream, measures, dose–response."""

from emoprobe.steering.edits import add, project_out, steer
from emoprobe.steering.measures import Measure, coherence, continuation, kl, log_probabilities, nll, read_out
from emoprobe.steering.sweep import NonFiniteWarning, Sweep, sweep

__all__ = [
    "Measure",
    "NonFiniteWarning",
    "Sweep",
    "add",
    "coherence",
    "continuation",
    "kl",
    "log_probabilities",
    "nll",
    "project_out",
    "read_out",
    "steer",
    "sweep",
]
