"""Pushes an exported folder to the Hugging Face Hub: only when asked, and private unless asked otherwise."""

import re
from pathlib import Path

from huggingface_hub import HfApi

from dropkey_cli.errors import InputError, RunError, first_line
from dropkey_cli.models.availability import unreachable_hub

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def check_push(name: str) -> None:
    """Refuse what cannot be pushed before anything is exported.

    Args:
        name: USER/NAME.

    Raises:
        InputError: If it is no such name, or the hub cannot be reached.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"--push_to_hub {name!r} is no name of a model on the hub: give USER/NAME")
    if reason := unreachable_hub():
        raise InputError(f"--push_to_hub {name}: the hub cannot be reached ({reason}): connect, or leave it out and push later")


def push(folder: Path, name: str, *, public: bool) -> str:
    """Upload a folder as a model; gives its address.

    Args:
        folder: What `export` made.
        name: USER/NAME; a model that is there already gets another commit.
        public: Whether everybody may see a new one.

    Raises:
        RunError: If the hub refuses.
    """
    api = HfApi(library_name="dropkey")
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export by dropkey")
    except Exception as error:  # the hub has a dozen kinds: not logged in, another user's, no network …
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise RunError(
            f"{str(folder)!r} is exported, but the hub did not take it ({reason}): log in with hf auth login, then: "
            f"hf upload {name} {folder}"
        ) from error
    return str(address)
