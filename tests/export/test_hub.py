from pathlib import Path
from typing import Any

import pytest

from dropkey_cli.errors import InputError, RunError
from dropkey_cli.export import hub
from dropkey_cli.export.hub import check_push, push
from dropkey_cli.models import availability


class Hub:
    """What HfApi does, written down."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.error: Exception | None = None

    def __call__(self, **options: str) -> "Hub":
        return self

    def create_repo(self, name: str, **options: bool) -> str:
        if self.error:
            raise self.error
        self.calls.append((name, options))
        return f"https://hub/{name}"

    def upload_folder(self, **options: Any) -> None:  # noqa: ANN401
        self.calls.append(("upload", options))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Hub:
    api = Hub()
    monkeypatch.setattr(hub, "HfApi", api)
    return api


@pytest.mark.parametrize("public", [True, False])
def test_the_folder_is_uploaded_as_it_was_checked(public: bool, api: Hub) -> None:
    assert push(Path("out"), "me/lions", public=public) == "https://hub/me/lions"
    (name, options), (_, upload) = api.calls
    assert (name, options) == ("me/lions", {"private": not public, "exist_ok": True})
    assert (upload["repo_id"], upload["folder_path"]) == ("me/lions", Path("out"))


def test_what_the_hub_refuses_is_one_line_that_says_how_to_go_on(api: Hub) -> None:
    api.error = PermissionError("401 Unauthorized\nmore")
    with pytest.raises(
        RunError, match=r"^'out' is exported, but .*PermissionError: 401 Unauthorized\): .* hf upload me/lions out$"
    ):
        push(Path("out"), "me/lions", public=False)


@pytest.mark.parametrize("name", ["lions", "me/lions/x", "https://hub/me/lions", "me/", ""])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="is no name of a model on the hub: give USER/NAME"):
        check_push(name)


def test_a_hub_out_of_reach_is_said_before_anything_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(availability, "get_session", no_network)
    with pytest.raises(InputError, match=r"^--push_to_hub me/lions: the hub cannot be reached \(.*ConnectionError\): connect"):
        check_push("me/lions")
