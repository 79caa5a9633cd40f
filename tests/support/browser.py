"""Chromium, where it is installed: what it makes of a page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.running import PATIENCE

_BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(_BROWSER is None, reason="Chromium is not installed")


def browse(page: Path, option: str) -> str:
    """Open a page in a Chromium without windows, with an option that says what to write of it; return its stdout."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent}", option]
    shown = subprocess.run([str(_BROWSER), *options, page.as_uri()], capture_output=True, text=True, timeout=PATIENCE)
    return shown.stdout
