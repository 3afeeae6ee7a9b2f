"""Whole experiments, each with its controls, and the studies that run them all."""

from emoprobe.study.conduct import Study, load_study
from emoprobe.study.result import Result
from emoprobe.study.run import run_study

__all__ = ["Result", "Study", "load_study", "run_claims", "run_concepts", "run_study"]

from emoprobe.study.claims.run import run_claims
from emoprobe.study.concepts.run import run_concepts
