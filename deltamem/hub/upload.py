"""`deltamem push`: an adapter's folder, checked, completed with its card, and sent to the Hub."""

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

# What may be sent: nothing that is run when it is loaded, as a pickle is (.bin, .pt, .pth, .pkl).
SUFFIXES = {".jinja", ".jpg", ".json", ".jsonl", ".md", ".png", ".safetensors", ".svg", ".txt"}
NAMES = {"LICENSE", "NOTICE"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """What is sent to a repository of the Hub.

    Args:
        repo: OWNER/NAME.
        files: the other files' places on this machine, by name.
        card: its README.md.
    """

    repo: str
    files: dict[str, Path]
    card: str

    @property
    def contents(self) -> dict[str, bytes | Path]:
        """All files by name, sorted: their contents, or where these are."""
        contents: dict[str, bytes | Path] = {**self.files, CARD: self.card.encode("utf-8")}
        return dict(sorted(contents.items()))


def prepare(folder: Path, repo: str) -> Upload:
    """Check an adapter and gather what is sent of it: the folder's files, but for hidden ones and folders in it, and its card.

    The folder stays as it is.

    Args:
        folder: of a saved adapter.
        repo: OWNER/NAME on the Hub.

    Raises:
        OSError: the folder holds no adapter.
        ValueError: an adapter of another method, weights that are not finite, a backbone that nobody else has, or files
            that could be run when they are loaded; `repo` is no such name.
    """
    if "/" not in repo or not has_hub_form(repo):
        raise ValueError(
            f"{repo!r} is not accepted; give OWNER/NAME, the name on the Hub that is yours or your organisation's first"
        )
    config = read_config(folder)
    _check_weights(folder, config)
    if hub_name(config.base_model_name_or_path) is None:
        raise ValueError(
            f"the backbone of {folder} is {config.base_model_name_or_path!r}, which nobody finds on the Hub; give its "
            f"name there as base_model_name_or_path in {CONFIG_NAME}"
        )
    files = {path.name: path for path in _files(folder)}
    card = make_card(folder, config, repo)
    if card.data.get("license") is None:
        logger.warning("The card names no licence. Say what others may do: `license: apache-2.0`, say, atop %s.", folder / CARD)
    return Upload(repo, files, str(card))


def send(upload: Upload, private: bool = False, revision: str | None = None) -> str:
    """Send all files in one commit, to a repository that is made if there is none.

    Args:
        upload: as `prepare` gives it.
        private: the repository is one that only its owner sees.
        revision: a branch, made if there is none; the main branch if None.

    Returns:
        The address of the commit.

    Raises:
        ValueError: `private`, and the repository is there already and public; nothing is sent.
        OSError: the Hub cannot be reached or refuses.
    """
    api = HfApi()
    try:
        return _commit(api, upload, private, revision)
    except HTTPError as error:
        if isinstance(error, OSError):  # the Hub's own answer, in words
            raise
        raise OSError(f"{api.endpoint} cannot be reached: {error}") from error


def as_text(upload: Upload) -> str:
    """All that would be sent, to be read: files with their sizes, and the card."""
    lines = [f"{_size(content):>13,}  {name}" for name, content in upload.contents.items()]
    return printable("\n".join([f"{upload.repo}:", *lines, "", f"{CARD}:", upload.card]))


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _commit(api: HfApi, upload: Upload, private: bool, revision: str | None) -> str:
    api.create_repo(upload.repo, private=private or None, exist_ok=True)
    if private and not api.model_info(upload.repo).private:
        raise ValueError(f"{upload.repo} is there already and public; make it private on the Hub, or leave --private out")
    if revision is not None:
        api.create_branch(upload.repo, branch=revision, exist_ok=True)
    files = [CommitOperationAdd(name, content) for name, content in upload.contents.items()]
    commit = api.create_commit(upload.repo, files, commit_message="Upload δ-mem adapter", revision=revision)
    return str(commit.commit_url)


def _check_weights(folder: Path, config: DeltaMemConfig) -> None:
    """Make sure that the weights have the names and widths of the config's."""
    shapes = {name: tuple(weight.shape) for name, weight in read_weights(folder).items()}
    corrections = [name for name in shapes if name.split(".")[-2:-1] in [[f"delta_mem_{role}"] for role in config.corrections]]
    others = [name for name in shapes if ".delta_mem_" not in name]
    others += [name for name in corrections if shapes[name][1:] != (config.memory_kind.read_width,)]
    if others or not corrections:
        path = folder / SAFETENSORS_WEIGHTS_NAME
        raise ValueError(f"{path} has not the weights of this {CONFIG_NAME}: see {(others or ['that there are none'])[0]}")


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    others = [path.name for path in found if path.suffix not in SUFFIXES and path.name not in NAMES]
    if others:
        raise ValueError(
            f"{folder} has {', '.join(sorted(others))}: such a file could be a pickle, which runs what it says when it is "
            f"loaded. Move it away; sent are files in {', '.join(sorted(SUFFIXES))}, and {', '.join(sorted(NAMES))}"
        )
    return found
