"""Suffixes of the files that are read as datasets, in lower case."""

from __future__ import annotations

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
NPZ_SUFFIX = ".npz"
PICKLE_SUFFIXES = (".pkl", ".pickle")
ARRAY_SUFFIXES = (*PICKLE_SUFFIXES, NPZ_SUFFIX)
FILE_SUFFIXES = (*ARCHIVE_SUFFIXES, *ARRAY_SUFFIXES)
