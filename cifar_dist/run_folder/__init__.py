"""Run folders: what is in one (folder), its settings, opening it to train, and finding it by name."""

from cifar_dist.run_folder.finding import find_run, split_step
from cifar_dist.run_folder.folder import CONFIG_NAME, FINAL, EvaluationFolder, RunFolder

__all__ = ["CONFIG_NAME", "FINAL", "EvaluationFolder", "RunFolder", "find_run", "split_step"]
