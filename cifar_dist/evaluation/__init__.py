"""Evaluate and predict with a trained run: views, every sample exactly once, and the files with its predictions."""
