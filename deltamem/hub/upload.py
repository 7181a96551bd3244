"""`deltamem push`: checks an adapter's folder, completes its card, and uploads it to the Hub."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from deltamem.adapter.files import read_config, read_weights
from deltamem.config import DeltaMemConfig
from deltamem.hub.card import CARD, has_hub_form, hub_name, make_card
from deltamem.io.printable import printable

# The files to upload; none that run code when loaded, such as pickles (.bin, .pt, .pth, .pkl).
SUFFIXES = {".jinja", ".jpg", ".json", ".jsonl", ".md", ".png", ".safetensors", ".svg", ".txt"}
NAMES = {"LICENSE", "NOTICE"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """The contents of an upload to the Hub.

    Args:
        repo: OWNER/NAME.
        files: the paths of all other files on this machine, by name.
        card: the text of README.md.
    """

    repo: str
    files: dict[str, Path]
    card: str

    @property
    def contents(self) -> dict[str, bytes | Path]:
        """All files, sorted by name: their contents or their paths."""
        contents: dict[str, bytes | Path] = {**self.files, CARD: self.card.encode("utf-8")}
        return dict(sorted(contents.items()))


def prepare(folder: Path, repo: str) -> Upload:
    """Check an adapter and gather its upload: the folder's files, except hidden ones and subfolders, and its card.

    The folder is not changed.

    Args:
        folder: the folder of a saved adapter.
        repo: OWNER/NAME on the Hub.

    Raises:
        OSError: the folder holds no adapter.
        ValueError: the adapter is of another method; its weights are not finite; its backbone is not on the Hub; a file could
            run code when loaded; `repo` is not a valid name.
    """
    if "/" not in repo or not has_hub_form(repo):
        raise ValueError(
            f"{repo!r} is not accepted; give OWNER/NAME, the name on the Hub that is yours or your organisation's first"
        )
    config = read_config(folder)
    _check_weights(folder, config)
    if hub_name(config.base_model_name_or_path) is None:
        raise ValueError(
            f"the backbone of {folder} is {config.base_model_name_or_path!r}, which is not a name on the Hub; give its "
            f"name there as base_model_name_or_path in {CONFIG_NAME}"
        )
    files = {path.name: path for path in _files(folder)}
    card = make_card(folder, config, repo)
    if card.data.get("license") is None:
        logger.warning("The card names no licence. Add one to the metadata of %s: `license: apache-2.0`, say.", folder / CARD)
    return Upload(repo, files, str(card))


def send(upload: Upload, private: bool = False, revision: str | None = None) -> str:
    """Upload all files in one commit, creating the repository if needed.

    Args:
        upload: as returned by `prepare`.
        private: create the repository as private.
        revision: a branch, created if needed; None for the main branch.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: `private` is set, but the repository exists and is public; nothing is uploaded.
        OSError: the Hub cannot be reached or refuses.
    """
    api = HfApi()
    try:
        return _commit(api, upload, private, revision)
    except HTTPError as error:
        if isinstance(error, OSError):  # the Hub's own error message
            raise
        raise OSError(f"{api.endpoint} cannot be reached: {error}") from error


def as_text(upload: Upload) -> str:
    """Describe the upload for a dry run: files with their sizes, and the card."""
    lines = [f"{_size(content):>13,}  {name}" for name, content in upload.contents.items()]
    return printable("\n".join([f"{upload.repo}:", *lines, "", f"{CARD}:", upload.card]))


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _commit(api: HfApi, upload: Upload, private: bool, revision: str | None) -> str:
    api.create_repo(upload.repo, private=private or None, exist_ok=True)
    if private and not api.model_info(upload.repo).private:
        raise ValueError(f"{upload.repo} exists already and is public; make it private on the Hub, or leave --private out")
    if revision is not None:
        api.create_branch(upload.repo, branch=revision, exist_ok=True)
    files = [CommitOperationAdd(name, content) for name, content in upload.contents.items()]
    commit = api.create_commit(upload.repo, files, commit_message="Upload δ-mem adapter", revision=revision)
    return str(commit.commit_url)


def _check_weights(folder: Path, config: DeltaMemConfig) -> None:
    """Check that the weights have the names and widths that the config implies."""
    shapes = {name: tuple(weight.shape) for name, weight in read_weights(folder).items()}
    corrections = [name for name in shapes if name.split(".")[-2:-1] in [[f"delta_mem_{role}"] for role in config.corrections]]
    others = [name for name in shapes if ".delta_mem_" not in name]
    others += [name for name in corrections if shapes[name][1:] != (config.memory_kind.read_width,)]
    if others or not corrections:
        path = folder / SAFETENSORS_WEIGHTS_NAME
        raise ValueError(f"{path} does not have the weights of its {CONFIG_NAME}: see {(others or ['that there are none'])[0]}")


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    others = [path.name for path in found if path.suffix not in SUFFIXES and path.name not in NAMES]
    if others:
        raise ValueError(
            f"{folder} has {', '.join(sorted(others))}: such a file could be a pickle, which can run code when it is loaded. "
            f"Move it away; only {', '.join(sorted(SUFFIXES))} files and {', '.join(sorted(NAMES))} are uploaded"
        )
    return found
