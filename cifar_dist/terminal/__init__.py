"""What a person at a terminal sees: lines that fit, bars that move, and an answer to Ctrl-C."""
