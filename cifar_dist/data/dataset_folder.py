"""Tell the folder of a packed dataset from what else a path may name: a shard, a run, an archive, nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cifar_dist.config.saved import CONFIG_NAME
from cifar_dist.data.dataset_file import known_names
from cifar_dist.data.image_files import is_image
from cifar_dist.data.source_suffixes import FILE_SUFFIXES
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.reading import read_json
from cifar_dist.formatting import list_some

FILE_NAME: Final = "manifest.json"
FORMAT: Final = "cifar-dist-manifest"
"""In the manifests of this program; others have files of that name, too."""

_PACKED_FROM: Final = (*FILE_SUFFIXES, ".toml")  # suffixes of the files that pack accepts


def is_dataset(folder: Path) -> bool:
    """Whether a folder has a manifest of this program, intact or not. Other programs have a manifest.json, too.

    Raises:
        UserError: the manifest cannot be read.
    """
    path = folder / FILE_NAME
    try:
        return path.is_file() and FORMAT.encode() in path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def find_tars(root: Path) -> list[str]:
    """List the tars in a folder and in the folders in it, without hidden ones; in any spelling of their suffix."""
    found = [path for pattern in ("[!.]*", "[!.]*/[!.]*") for path in root.glob(pattern)]
    return sorted(path.relative_to(root).as_posix() for path in found if path.suffix.lower() == ".tar")


def describe_datasets_inside(root: Path) -> tuple[str, str] | None:
    """Describe the packed datasets among the folders in a folder, without runs.

    Returns:
        The statement that ``root`` contains them, and the advice to name one; None if it contains none.
    """
    found = [path.parent for path in root.glob(f"[!.]*/{FILE_NAME}") if is_dataset(path.parent)]
    names = sorted(folder.name for folder in found if not _is_run(folder))
    if not names:
        return None
    several = len(names) > 1
    return (
        f"{root} contains the packed dataset{'s' * several} {list_some(names)}",
        f"name {'one' if several else 'it'}: {root / names[0]}",
    )


def _is_run(dataset: Path) -> bool:
    return (dataset / CONFIG_NAME).is_file()


def refuse_run(folder: Path) -> None:
    """Raise UserError for the folder of a run, which keeps the manifest of its dataset."""
    if is_dataset(folder) and _is_run(folder):
        raise UserError(f"{folder} is a run, not a packed dataset; that of the run is data.path in its config.toml")


def refuse_part(path: Path) -> None:
    """Raise UserError for a shard or the manifest of a packed dataset, where its folder is meant."""
    is_manifest = path.name == FILE_NAME
    if not path.is_file() or not (is_manifest or path.suffix == ".tar"):
        return
    folders = (path.parent,) if is_manifest else (path.parent, path.parent.parent)
    dataset = next((folder for folder in folders if is_dataset(folder)), None)
    if dataset is not None:
        part = "the manifest" if is_manifest else "a shard"
        raise UserError(f"{path} is {part} of a packed dataset; name its folder, {dataset}")


def explain_absence(root: Path) -> UserError:
    """Return the error of a path that is not a packed dataset, with what is probably meant."""
    inside = describe_datasets_inside(root)
    if inside is not None:
        return UserError("; ".join(inside))
    has_tars = bool(find_tars(root))
    manifest = root / FILE_NAME
    if has_tars and manifest.is_file() and not read_json(manifest):
        return UserError(
            f"{manifest} is damaged; pack the dataset again, into a new folder; if its tars were indexed, delete "
            f"{FILE_NAME} and run: cifar-dist index {quoted(root)}"
        )
    names_image = is_image(root.name)
    if root.is_file() and not (names_image or root.name.lower().endswith(_PACKED_FROM)):
        return UserError(f"{root} is a file, not a packed dataset; name a folder that contains {FILE_NAME}")
    if root.is_file() or (root.is_dir() and any(root.iterdir()) and not has_tars):
        it, source = ("its folder", root.parent) if root.is_file() and names_image else ("it", root)
        way = f"create one from {it}: cifar-dist pack {quoted(source)} shards/NAME"
        if root.suffix.lower() == ".tar":
            way += f"; if it is a shard for webdataset, index its folder: cifar-dist index {quoted(root.parent)}"
        return UserError(f"{root} is not a packed dataset; {way}")
    what = f"it has no {FILE_NAME} of cifar-dist" if root.is_dir() else "the folder does not exist"
    if is_dataset("shards" / root):
        return UserError(f"no packed dataset at {root}: {what}; did you mean 'shards/{root}'?")
    known = root.name if root.name in known_names() else "SOURCE"
    verb = "index" if has_tars else f"pack {known}"
    return UserError(f"no packed dataset at {root}: {what}; create one with: cifar-dist {verb} {quoted(root)}")
