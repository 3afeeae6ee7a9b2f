"""Whole experiments, each with its controls, and the study that runs them all."""

from emoprobe.study.conduct import Study, load_study
from emoprobe.study.result import Result
from emoprobe.study.run import run_study

__all__ = ["Result", "Study", "load_study", "run_study"]
