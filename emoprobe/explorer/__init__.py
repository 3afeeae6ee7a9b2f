"""The explorer: a local page that shows what probes read in a text, and what interventions do to one model."""

from emoprobe.explorer.launch import Explorer, explore

__all__ = ["Explorer", "explore"]
