"""Draw figures, sheets of images, plots of sweeps, and one HTML page per run. Nothing else here draws."""
