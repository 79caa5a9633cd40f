"""Workarounds for libraries that make training on a CPU slow or wrong: OpenMP, malloc and oneDNN."""
