"""Run folders: what is in one (folder, evaluation), its settings, opening it to train, and finding it by name."""

from cifar_dist.run_folder.evaluation import FINAL, EvaluationFolder
from cifar_dist.run_folder.finding import find_run, split_step
from cifar_dist.run_folder.folder import RunFolder
from cifar_dist.run_folder.summary import EvaluationSummary, read_summary

__all__ = ["FINAL", "EvaluationFolder", "EvaluationSummary", "RunFolder", "find_run", "read_summary", "split_step"]
