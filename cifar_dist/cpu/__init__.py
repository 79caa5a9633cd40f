"""The CPU: which cores are free, and workarounds for OpenMP, malloc and oneDNN."""
