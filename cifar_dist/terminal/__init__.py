"""What a person at a terminal sees: lines that fit, bars that move, an answer to Ctrl-C; the standard streams."""
