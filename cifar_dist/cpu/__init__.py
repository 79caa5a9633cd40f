"""The CPU: which cores are free, faster convolutions, and workarounds for OpenMP, malloc and oneDNN."""
