"""Run folders seen from above: which there are, how they differ, what of them can go."""
