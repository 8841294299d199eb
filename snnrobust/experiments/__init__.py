"""Experiment files and run folders."""

from snnrobust.experiments.config import Experiment, parse, read
from snnrobust.experiments.run import read_results, render_folder, run, versions

__all__ = ["Experiment", "parse", "read", "read_results", "render_folder", "run", "versions"]
