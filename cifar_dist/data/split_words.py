"""The names of splits, and the words for them in other datasets."""

from __future__ import annotations

from typing import Final

SPLITS = ("train", "val", "test")
SPLIT_WORDS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words for a split in the names of folders and tars, in lower case."""
MEANT_WORDS: Final = {**SPLIT_WORDS, "eval": "val", "evaluation": "val"}
"""The same, and words that are not read as a split, though they mean one."""
