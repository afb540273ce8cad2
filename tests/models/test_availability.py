from pathlib import Path

import huggingface_hub.constants as hub
import pytest

from dropkey_cli.errors import InputError
from dropkey_cli.models import availability
from dropkey_cli.models.availability import cached_hub_file, check_address, check_hub_file, unreachable_hub


class Session:
    """A network, or none."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def head(self, _address: str, *, timeout: float) -> None:
        if self.error:
            raise self.error


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "torch"))


def test_a_network_that_is_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "get_session", lambda: Session(None))
    assert unreachable_hub() is None
    check_hub_file("it", "a/b", ("x",), remedy="do that")
    check_address("it", "https://a/b.pth", remedy="do that")


def test_neither_network_nor_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "get_session", lambda: Session(OSError("no network")))
    ending = r"cannot be fetched \(https://\S+ does not answer: OSError\): connect once, take a filled cache, or do that$"
    with pytest.raises(InputError, match=rf"^it \(a/b\) are not in the cache .*HF_HOME\) and {ending}"):
        check_hub_file("it", "a/b", ("x",), remedy="do that")
    with pytest.raises(InputError, match=rf"^it \(https://a/b.pth\) are not in the cache .*TORCH_HOME\) and {ending}"):
        check_address("it", "https://a/b.pth", remedy="do that")


def test_a_file_in_the_cache_by_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert unreachable_hub() == "HF_HUB_OFFLINE is set"
    for revision, commit in (("main", "abc"), ("v1", "def")):
        (tmp_path / "models--a--b/refs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models--a--b/refs" / revision).write_text(commit)
        (tmp_path / "models--a--b/snapshots" / commit).mkdir(parents=True)
    file = tmp_path / "models--a--b/snapshots/def/config.json"
    file.write_text("{}")
    assert cached_hub_file("a/b", "config.json") is None
    assert cached_hub_file("a/b@v1", "config.json") == str(file)
    check_hub_file("it", "a/b@v1", ("other", "config.json"), remedy="do that")
