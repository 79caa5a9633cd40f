"""Weights & Biases as a mirror of ``metrics.jsonl``.

* One W&B id per run, kept in ``wandb.json``, so that every resume continues the same W&B run. A copy gets its own.
* Its own x-axis, ``step``: a resume repeats steps, which W&B would drop because of its internal step.
* Offline, each process writes a new segment, and syncing a segment replaces the server's data of the id. A segment
  therefore begins with the complete history so far, and the newest one contains the entire run, once it is complete.
* Online, the history is sent again unless the same W&B run has received all of it: W&B shows a step that it receives
  twice at the same place, and would never receive one that a failure, a kill or a process without W&B kept from it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, Protocol

from cifar_dist.config import Config, TrackingConfig, WandbConfig
from cifar_dist.errors import UserError, quoted
from cifar_dist.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.reading import read_json
from cifar_dist.formatting import counted
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.timeline import Status
from cifar_dist.tracking.wandb_segment import read_messages

_INIT_SECONDS = 30
_FINISH_SECONDS = 60
_WRITE_SECONDS = 10.0  # after which W&B, whose service ends a run by itself, has written the last rows to the folder
_CHECK_SECONDS = 10.0  # between two checks of W&B's log
_FATAL = re.compile(r'"filestream: fatal error: (?:filestream: )?([^"\\]*)')
"""What W&B's service logs of an error after which it uploads no more rows. It reports that to nobody."""
_OF_THE_KEY = "check tracking.entity, tracking.project and whose key is used; "
_WAYS = {"401": "log in again with wandb login --relogin; ", "403": _OF_THE_KEY, "404": _OF_THE_KEY}
_NOT_MEASURED = {"step", "epoch", "split", "samples", "usage"}  # fields of a record that are no columns
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EXIT_CODE: dict[Status | None, int] = {
    "finished": EXIT_DONE,
    "interrupted": EXIT_REQUEUE,
    "failed": EXIT_FAILED,
    None: EXIT_DONE,
}


Mode = Literal["disabled", "offline", "online"]
_MODES: dict[str, Mode] = {
    "disabled": "disabled",
    "offline": "offline",
    "dryrun": "offline",
    "online": "online",
    "run": "online",
}
"""Values of the environment variable ``WANDB_MODE``."""


def wandb_mode(tracking: TrackingConfig) -> Mode:
    """Return the mode of a run: of ``WANDB_MODE`` if it is set and the run asks for W&B, else ``tracking.wandb``.

    Raises:
        UserError: ``WANDB_MODE`` has an unknown value.
    """
    if not isinstance(tracking, WandbConfig):
        return "disabled"
    variable = os.environ.get("WANDB_MODE", "")
    if variable and variable not in _MODES:
        raise UserError(f"WANDB_MODE is '{variable}'; use {', '.join(_MODES)}, or unset it")
    return _MODES[variable] if variable else tracking.wandb


def may_lack_rows(folder: RunFolder, tracking: TrackingConfig, records: int) -> bool:
    """Whether W&B, which a run asks for, may not have all of its records."""
    last = _last_process(folder.wandb_identity)
    return wandb_mode(tracking) != "disabled" and (not last.mode or last.records < records)


def describe_incomplete(folder: Path) -> str:
    """Say what to do in place of an upload after W&B failed offline: it would replace what W&B has.

    Args:
        folder: the run folder.
    """
    return f"no folder in {RunFolder(folder).wandb} has all rows of this run; resume it before you upload one"


class _Run(Protocol):
    """The part of ``wandb.Run`` that is used."""

    @property
    def dir(self) -> str: ...
    @property
    def url(self) -> str | None: ...
    def define_metric(self, name: str, *, step_metric: str | None = None, summary: str | None = None) -> object: ...
    def log(self, data: Mapping[str, float]) -> None: ...
    def mark_preempting(self) -> None: ...
    def finish(self, exit_code: int) -> None: ...


class WandbMirror:
    """A :class:`~cifar_dist.tracking.mirror.Mirror`; its files are ``wandb.json`` and ``wandb/`` in the run folder.

    Args:
        folder: the run folder.
        config: the run's; ``tracking.wandb`` is the mode, ``offline`` or ``online``.
        facts: added to the config in W&B's run table.
    """

    def __init__(self, folder: Path, config: Config, facts: RunFacts) -> None:
        assert isinstance(config.tracking, WandbConfig)
        self._folder, self._config, self._facts = RunFolder(folder), config, facts
        self._tracking = config.tracking
        self._run: _Run | None = None
        self._identity = _Identity()
        self._lacks_history = False
        self._sent = 0
        self._logged = 0  # of these, by this process
        self._address: tuple[str, str] | None = None
        self._checked, self._log_read = 0.0, 0
        self._is_refused = False
        _import_wandb(self._folder.wandb)  # in the main thread

    def start(self, history: Sequence[Record]) -> None:
        tracking, known = self._tracking, self._folder.wandb_identity
        last = _continued(_last_process(known), self._folder.path)
        project = tracking.project or last.project or os.environ.get("WANDB_PROJECT") or "cifar-dist"
        entity = tracking.entity or last.entity or os.environ.get("WANDB_ENTITY", "")
        mode = wandb_mode(tracking)
        self._identity = _Identity(last.id or secrets.token_hex(4), mode, project, entity, len(history), last.folder)
        self._keep(replace(last, id=self._identity.id, mode=""))  # before W&B knows the id: a kill may come in between
        self._run = _start(self._folder.path, self._config, self._facts, self._identity, mode)
        self._keep(replace(self._identity, mode=""))
        if self._run.url:
            self._address = "W&B shows this run at:", self._run.url
        # Also more than all: a process that failed had trained steps which this one repeats.
        has_all = last.records >= len(history) and replace(last, records=len(history)) == self._identity
        self._lacks_history = mode == "offline" or not has_all
        self._sent = 0 if self._lacks_history else len(history)

    def send_again(self, records: Sequence[Record]) -> None:
        """Record a part of the history, if W&B does not have it."""
        if self._lacks_history:
            self.train_steps(records)

    def train_steps(self, records: Sequence[Record]) -> None:
        assert self._run is not None
        for record in records:
            self._run.log(_row(record))
        self._sent += len(records)
        self._logged += len(records)
        if time.monotonic() - self._checked >= _CHECK_SECONDS:
            self._checked = time.monotonic()
            self._note_refusal(self._run)

    def evaluation(self, record: Record, best: bool) -> None:
        self.train_steps([record])

    def close(self, status: Status | None) -> None:
        """Wait a bounded time for uploads; what remains stays in ``wandb/`` for ``wandb sync``.

        Raises:
            TimeoutError: something remains.
            OSError: the folder in ``wandb/``, which is to be uploaded, lacks rows: the disk was full, or it is deleted.
        """
        run, self._run = self._run, None
        try:
            if run is not None:
                self._finish(run, status)
        finally:
            for leftover in self._folder.wandb.glob("tmp*wandb-*"):  # also of a run that could not start
                shutil.rmtree(leftover, ignore_errors=True)

    def _finish(self, run: _Run, status: Status | None) -> None:
        if status == "interrupted":
            run.mark_preempting()
        remains = ""
        try:
            run.finish(exit_code=_EXIT_CODE[status])
        except TimeoutError:
            remains = f"not everything was uploaded within {_FINISH_SECONDS} s"
        if status is None:  # what this process records from here on is not in the folder
            return
        self._note_refusal(run)
        has_all = not remains and not self._is_refused
        is_uploaded_later = not has_all or self._identity.mode == "offline"
        if is_uploaded_later:
            self._require_all_rows(run)
        if has_all:
            self._keep(replace(self._identity, records=self._sent))
        if is_uploaded_later and not (self._is_refused and self._address):  # which has the command
            self._address = "upload this run to W&B with:", self._upload_command(run)
        if remains:
            raise TimeoutError(remains)

    def _require_all_rows(self, run: _Run) -> None:
        """Raise OSError if the folder of the run lacks rows. W&B logs, at best, that it could not write them."""
        segment = Path(run.dir).parent / f"run-{self._identity.id}.wandb"
        end = time.monotonic() + _WRITE_SECONDS
        while (written := _count_rows(segment)) < self._logged and time.monotonic() < end:
            time.sleep(0.1)
        if written < self._logged or not segment.is_file():
            self._address = None
            raise OSError(f"{segment.parent} has {written} of {counted(self._logged, 'row')}")

    def _note_refusal(self, run: _Run) -> None:
        """Announce once that the server refuses rows; W&B still writes them to the folder of the run."""
        log = Path(run.dir).parent / "logs" / "debug-internal.log"
        try:
            with log.open("rb") as file:
                file.seek(self._log_read)
                lines = file.read()
        except OSError:  # W&B has not begun it
            return
        lines = lines[: lines.rfind(b"\n") + 1]
        self._log_read += len(lines)
        if not self._is_refused and (found := _FATAL.search(lines.decode(errors="replace"))):
            self._is_refused = True
            status = re.search(r"\b4\d\d\b", found[1])
            cause = f"answers with HTTP status {status[0]}" if status else f"ended its upload ({found[1][:100]})"
            way = _WAYS.get(status[0], "") if status else ""
            self._address = (
                f"warning: W&B {cause} and shows nothing more of this run; {way}once it has ended, resume it, or "
                "upload it with:",
                self._upload_command(run),
            )

    def _upload_command(self, run: _Run) -> str:
        return f"{_program()} sync {quoted(self._folder.wandb / Path(run.dir).parent.name)}"

    def take_address(self) -> tuple[str, str] | None:
        """Return, once, a text and what it announces: the run's URL, or the command that uploads it after the end."""
        address, self._address = self._address, None
        return address

    def _keep(self, identity: _Identity) -> None:
        write_atomic(self._folder.wandb_identity, json.dumps(asdict(identity)) + "\n")


@dataclass(frozen=True)
class _Identity:
    """What ``wandb.json`` has: the W&B run of the last process that had one, and how many records it has received.

    The mode is empty until W&B has everything: while a process trains, and after it was killed or its W&B failed.
    A resume without ``WANDB_PROJECT`` or ``WANDB_ENTITY``, as in a requeued job, continues in the same project.
    The folder is that of the process: where it still has the same W&B run, another folder with this file is its copy.
    """

    id: str = ""
    mode: Mode | Literal[""] = ""
    project: str = ""
    entity: str = ""
    records: int = 0
    folder: str = ""


def _last_process(path: Path) -> _Identity:
    """Read ``wandb.json``; what it lacks or has of another type has its default, and all has without an id."""
    raw, default = read_json(path), _Identity()
    found = {key: raw[key] for key, value in asdict(default).items() if type(raw.get(key)) is type(value)}
    return _Identity(**found) if _ID.fullmatch(found.get("id", "")) else default


def _continued(last: _Identity, folder: Path) -> _Identity:
    """Return what a process in ``folder`` continues: no W&B run of a folder that this one is a copy of."""
    if last.folder and _is_copy(last, folder):
        last = _Identity(project=last.project, entity=last.entity)
    return replace(last, folder=str(folder.resolve()))


def _is_copy(last: _Identity, folder: Path) -> bool:
    original = RunFolder(Path(last.folder))
    try:
        is_original = original.path.samefile(folder)
    except (OSError, ValueError):  # it was moved here; or the file is damaged
        return False
    return not is_original and _last_process(original.wandb_identity).id == last.id


def _import_wandb(own: Path) -> None:
    """Import W&B with its temporary folders in its ``own`` folder; a process that ends at once leaves them behind.

    Where a process has temporary files is one setting for all of its threads.
    """
    before = tempfile.tempdir
    own.mkdir(exist_ok=True)
    tempfile.tempdir = str(own)
    try:
        import wandb  # noqa: F401
    finally:
        tempfile.tempdir = before


def _program() -> str:
    """Return the command of W&B as one word, whether or not the environment is activated where it is typed."""
    installed = Path(sys.executable).with_name("wandb")
    return quoted(installed) if installed.is_file() else "wandb"


def _start(folder: Path, config: Config, facts: RunFacts, this: _Identity, mode: Mode) -> _Run:
    import wandb

    # Silent before init, because otherwise wandb prompts for an API key at a terminal, and all ranks would wait.
    wandb.setup(settings=wandb.Settings(silent=True))
    run: _Run = wandb.init(
        project=this.project,
        entity=this.entity or None,
        name=folder.name,
        id=this.id,
        dir=folder,
        mode=mode,
        resume="allow" if mode == "online" else None,
        config={**asdict(config), "facts": asdict(facts)},
        settings=wandb.Settings(
            silent=True,
            console="off",  # do not capture stdout: training.log has the output
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,  # else a resume would believe that W&B has everything
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    run.define_metric("val/accuracy", step_metric="step", summary="max")
    return run


def _count_rows(segment: Path) -> int:
    """Count the rows that W&B has written to its file; none in a file that is missing or unreadable."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    rows = 0
    try:
        for message in read_messages(segment):
            rows += Message.FromString(message).WhichOneof("record_type") == "history"
    except Exception:  # whatever it has instead of a row
        pass
    return rows


def _row(record: Record) -> dict[str, float]:
    row = {"step": record.step, "epoch": record.epoch}
    names = [field.name for field in fields(Record) if field.name not in _NOT_MEASURED]
    values = {f"{record.split}/{name}": getattr(record, name) for name in names}
    if record.usage:
        shares = {f"time/{phase}": share for phase, share in record.usage.shares.items()}
        values |= {**shares, "peak_bytes": record.usage.peak_bytes, "utilisation": record.usage.utilisation}
    return row | {name: value for name, value in values.items() if value is not None}
