"""Files and folders: written complete or not at all, listed, hidden, deleted, verified, and given to the user."""
