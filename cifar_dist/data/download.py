"""A dataset file's archive: the local copy, or fetched once, checked and kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from cifar_dist.data.dataset_file import DatasetFile
from cifar_dist.errors import UserError
from cifar_dist.formatting import progress

MAX_BYTES = 64 << 30
_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte


def locate(file: DatasetFile, path: Path, *, show: bool = True) -> Path:
    """The archive or folder that the dataset file at ``path`` speaks of; downloaded beside it if need be.

    Args:
        file: the dataset file.
        path: where it lies; a local copy is looked for there and in the working folder.
        show: show a progress bar.

    Raises:
        UserError: there is none and none can be fetched, or its MD5 is another than the dataset file says.
    """
    name = file.archive_name
    for candidate in (path.parent / name, Path(name)):
        if candidate.exists():
            if file.md5 is not None and candidate.is_file():
                _check(candidate, _md5(candidate), file.md5, path)
            return candidate
    if file.url is None:
        raise UserError(f"{path} speaks of '{name}', which is neither in {path.parent} nor here; put it there")
    target = path.parent / name
    _download(file.url, target, str(file.md5), path, show=show)
    return target


def _download(url: str, target: Path, md5: str, path: Path, *, show: bool) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "cifar-dist"})
    try:
        with contextlib.ExitStack() as stack:
            response = stack.enter_context(urllib.request.urlopen(request, timeout=_TIMEOUT))
            if urlsplit(response.url).scheme not in ("http", "https"):
                raise urllib.error.URLError("it was redirected to something that is no http address")
            total = int(response.headers.get("Content-Length") or 0)
            advance = stack.enter_context(progress(f"fetching {target.name}", total, "bytes", show=show))
            output = stack.enter_context(temporary.open("wb"))
            received = 0
            while chunk := response.read(_CHUNK):
                received += len(chunk)
                if received > MAX_BYTES:
                    raise urllib.error.URLError(f"it gives more than {MAX_BYTES:,} bytes")
                digest.update(chunk)
                output.write(chunk)
                advance(len(chunk))
            if total and received != total:
                raise urllib.error.URLError(f"the connection ended after {received:,} of {total:,} bytes")
            output.flush()
            os.fsync(output.fileno())
        _check(url, digest.hexdigest(), md5, path)
        temporary.replace(target)
    except UserError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # URLError and a time-out are OSErrors
        cause = getattr(error, "reason", None) or error
        reason = getattr(cause, "strerror", None) or cause
        raise UserError(
            f"{url} cannot be fetched ({reason}); fetch it where there is a network and put it at {target}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _check(what: Path | str, found: str, expected: str, path: Path) -> None:
    if found != expected:
        raise UserError(f"{what} has the MD5 {found} and {path} says {expected}; it is damaged or another file")
