"""Apply the optimizer, schedule and average of a config to a network; Muon and SAM; the curve of a range test."""
