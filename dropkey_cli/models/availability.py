"""Whether a file of a hub or at an address is in the cache or can be fetched; whoever is offline is told at once."""

from threading import Thread

from huggingface_hub import constants, get_session, try_to_load_from_cache
from timm.models._hub import check_cached_file, get_cache_dir

from dropkey_cli.errors import InputError

PATIENCE = 1.5  # seconds for a server to answer, looking up its name included
HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def check_hub_file(what: str, hub_id: str, names: tuple[str, ...], *, remedy: str) -> None:
    """Refuse at once a file of the hub that would fail after a minute of retries.

    Args:
        what: What the file is, for the message.
        hub_id: user/name, or user/name@revision.
        names: The names that it may have.
        remedy: What else can be done.

    Raises:
        InputError: If it is not in the cache and the hub cannot be reached.
    """
    if not any(cached_hub_file(hub_id, name) for name in names) and (reason := unreachable_hub()):
        raise InputError(_not_there(what, hub_id, f"{constants.HF_HUB_CACHE} (HF_HOME)", reason, remedy))


def check_address(what: str, url: str, *, remedy: str) -> None:
    """Refuse at once a file at an address that would fail after a minute of retries.

    Args:
        what: What the file is, for the message.
        url: Its address.
        remedy: What else can be done.

    Raises:
        InputError: If it is not in the cache and its server cannot be reached.
    """
    if not check_cached_file(url) and (reason := _unreachable(url)):
        raise InputError(_not_there(what, url, f"{get_cache_dir()} (TORCH_HOME)", reason, remedy))


def cached_hub_file(hub_id: str, name: str) -> str | None:
    """The path of a hub's file in the cache; None if it is not there."""
    repository, _, revision = hub_id.partition("@")
    path = try_to_load_from_cache(repository, name, revision=revision or None)
    return path if isinstance(path, str) else None


def unreachable_hub() -> str | None:
    """Why the hub cannot be reached; None if it can."""
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)


def _not_there(what: str, source: str, cache: str, reason: str, remedy: str) -> str:
    return (
        f"{what} ({source}) are not in the cache {cache} and cannot be fetched ({reason}): "
        f"connect once, take a filled cache, or {remedy}"
    )


def _unreachable(address: str) -> str | None:
    """Why ``address`` does not answer within a moment; None if it does.

    In a thread that is left behind, because no timeout of a request covers the search for a name's address.
    """
    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=1)
        except Exception as error:  # every kind of network trouble means the same here
            answers.append(f"{address} does not answer: {type(error).__name__}")
        else:
            answers.append(None)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers[0] if answers else f"{address} does not answer within {PATIENCE} seconds"
