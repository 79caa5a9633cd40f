"""Sweeps: one TOML file becomes many runs, trained here or on a cluster and compared in one table."""
