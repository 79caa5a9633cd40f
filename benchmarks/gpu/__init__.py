"""What ``benchmarks/gpu.sh`` runs: items that test and measure the trainer on a GPU, and the table of their results."""
