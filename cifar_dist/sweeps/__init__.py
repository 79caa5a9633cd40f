"""Sweeps: one TOML file becomes many runs, that are started here or on a cluster and told in one table."""
