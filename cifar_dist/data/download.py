"""Find the archive of a dataset file locally, or download it once and verify it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from cifar_dist.data.dataset_file import DatasetFile
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.folders import is_writable
from cifar_dist.files.temporary import abandoned, is_temporary_of, temporary_of
from cifar_dist.formatting import size as size_of
from cifar_dist.terminal.notice import print_notes
from cifar_dist.terminal.progress import progress, waiting

MAX_BYTES = 64 << 30
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30  # without a byte received


def locate_archive(file: DatasetFile, path: Path, *, show: bool = True) -> Path:
    """Return the archive or folder that a dataset file names, downloading it beside that file if necessary.

    Args:
        file: the dataset file.
        path: its path; a local copy is searched for beside it and then in the working directory.
        show: show a progress bar.

    Raises:
        UserError: the archive does not exist and cannot be downloaded, or its MD5 differs from the dataset file's.
    """
    name = file.archive_name
    for candidate in (path.parent / name, Path(name)):
        if candidate.exists():
            if file.md5 is not None and candidate.is_dir():
                raise UserError(f"{path}: md5 is of an archive, and {candidate} is a folder; remove md5")
            if file.md5 is not None:
                with waiting(f"computing the checksum of {candidate.name}", show=show):
                    found = _md5_of(candidate)
                _require_md5(candidate, found, file.md5, path)
            return candidate
    if file.url is None:
        if Path(name).is_absolute():
            raise UserError(f"{path}: the archive '{name}' does not exist; correct the path")
        raise UserError(
            f"{path}: the archive '{name}' does not exist in {path.parent} or in the working directory; put it there"
        )
    target = path.parent / name
    if not is_writable(target.parent):
        raise _unwritable(target, file.url, "the folder is read-only for you")
    print_notes(_note_killed(target))
    _download(file.url, target, str(file.md5), path, show=show)
    return target


def _download(url: str, target: Path, md5: str, path: Path, *, show: bool) -> None:
    temporary = temporary_of(target)
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "cifar-dist"})
    try:
        with contextlib.ExitStack() as stack:
            with _network_errors(url, target):
                response = stack.enter_context(urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS))
                if urlsplit(response.url).scheme not in ("http", "https"):
                    raise urllib.error.URLError("it redirects to a URL that is not http:// or https://")
                total = int(response.headers.get("Content-Length") or 0)
            advance = stack.enter_context(progress(f"downloading {target.name}", total, "bytes", show=show))
            output = stack.enter_context(temporary.open("wb"))
            for chunk in _chunks(response, total, url, target):
                digest.update(chunk)
                output.write(chunk)
                advance(len(chunk))
            output.flush()
            os.fsync(output.fileno())
        _require_md5(url, digest.hexdigest(), md5, path)
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(target, url, error.strerror or str(error)) from None
    finally:
        with contextlib.suppress(OSError):  # of a read-only disk; the error under way says so
            temporary.unlink(missing_ok=True)


def _note_killed(target: Path) -> list[str]:
    """Note the incomplete copies of an archive that downloads of processes that have ended left."""
    notes = []
    for path in abandoned(target.parent):
        if is_temporary_of(path, target):
            with contextlib.suppress(OSError):  # it ends just now
                notes.append(
                    f"{path.name} ({size_of(path.stat().st_size)}) was left by a download that was killed, unless one "
                    f"on another machine writes it; delete it: rm {quoted(path)}"
                )
    return notes


def _unwritable(target: Path, url: str, reason: str) -> UserError:
    return UserError(
        f"{target} cannot be written ({reason}); free space there or allow it, or download {url} to the working "
        "directory"
    )


def _chunks(response: HTTPResponse, total: int, url: str, target: Path) -> Iterator[bytes]:
    received = 0
    with _network_errors(url, target):  # not those of the file, which are raised where this yields
        while chunk := response.read(_CHUNK_BYTES):
            received += len(chunk)
            if received > MAX_BYTES:
                raise urllib.error.URLError(f"it sends more than {MAX_BYTES:,} bytes")
            yield chunk
        if total and received != total:
            raise urllib.error.URLError(f"the connection ended after {received:,} of {total:,} bytes")


@contextlib.contextmanager
def _network_errors(url: str, target: Path) -> Iterator[None]:
    """Raise what goes wrong between this machine and the server as a UserError."""
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        cause = getattr(error, "reason", None) or error
        reason = getattr(cause, "strerror", None) or cause
        raise UserError(
            f"cannot download {url} ({reason}); download it on a machine with a network and copy it to {target}"
        ) from None


def _md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _require_md5(what: Path | str, found: str, expected: str, path: Path) -> None:
    if found != expected:
        raise UserError(f"{what} has the MD5 {found}, but {path} requires {expected}; replace it, or correct the md5")
