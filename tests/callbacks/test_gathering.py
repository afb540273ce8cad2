from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dropkey_cli.callbacks.gathering import anywhere, gather, gather_everywhere, largest_anywhere, num_processes


def trainer(world_size: int, *, first: bool) -> Any:  # noqa: ANN401 - the little of a trainer that is looked at
    return SimpleNamespace(world_size=world_size, is_global_zero=first)


def test_one_process_speaks_for_itself() -> None:
    assert num_processes() == 1
    assert anywhere("here") == "here"
    assert gather(["mine"], trainer(1, first=True)) == [["mine"]]
    assert largest_anywhere(torch.tensor([1.0, 3.0])).tolist() == [1.0, 3.0]


def test_only_the_first_process_gets_what_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather_object(own: str, gathered: list[Any] | None) -> None:
        if gathered is not None:
            assert gathered == [None, None]
            gathered[:] = [own, "theirs"]

    monkeypatch.setattr(torch.distributed, "gather_object", gather_object)
    assert gather("mine", trainer(2, first=True)) == ["mine", "theirs"]
    assert gather("mine", trainer(2, first=False)) == []


def test_the_first_text_of_several_processes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather_object(gathered: list[str], own: str) -> None:
        gathered[:] = ["", own, "later"]

    monkeypatch.setattr("dropkey_cli.callbacks.gathering.num_processes", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    assert anywhere("mine") == "mine"
    assert anywhere("") == "later"


def test_all_processes_get_what_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather_object(gathered: list[Any], own: str) -> None:
        gathered[:] = [own, "theirs"]

    assert gather_everywhere("mine") == ["mine"]
    monkeypatch.setattr("dropkey_cli.callbacks.gathering.num_processes", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    assert gather_everywhere("mine") == ["mine", "theirs"]
