"""Apply the optimizer, schedule and average of a config to a network; the optimizers that torch lacks."""
