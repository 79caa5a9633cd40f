"""Suffixes of the files that are read as datasets, in lower case."""

from __future__ import annotations

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
NPZ_SUFFIX = ".npz"
PICKLE_SUFFIXES = (".pkl", ".pickle")
ARRAY_SUFFIXES = (*PICKLE_SUFFIXES, NPZ_SUFFIX)
"""Of files that may be a set without labels, which ``predict`` reads, too."""
FILE_SUFFIXES = (*ARCHIVE_SUFFIXES, *ARRAY_SUFFIXES)
"""Of all files that ``pack`` reads."""
FILE_ENDINGS = f"{', '.join(FILE_SUFFIXES[:-1])} or {FILE_SUFFIXES[-1]}"
"""The same in a message."""
