"""Directions out of activations: linear probes with their controls, and what they read."""

from emoprobe.probes.direction import Direction
from emoprobe.probes.fit import fit_probes
from emoprobe.probes.geometry import Geometry
from emoprobe.probes.probe_set import ProbeSet, load_probes
from emoprobe.probes.readout import Trace, logit_lens, trace

__all__ = ["Direction", "Geometry", "ProbeSet", "Trace", "fit_probes", "load_probes", "logit_lens", "trace"]
