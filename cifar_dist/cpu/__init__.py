"""What the libraries of a CPU get wrong (OpenMP, malloc, oneDNN), and the way around it."""
