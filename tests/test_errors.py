from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropkey_cli.errors import InputError, RunError, did_you_mean, first_line, near_path, one_line


def test_the_nearest_words_come_first() -> None:
    assert did_you_mean("vit_tny", ["resnet18", "vit_tinny", "vit_tiny"]) == "; did you mean 'vit_tiny' or 'vit_tinny'?"


def test_the_nearest_paths_are_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert near_path("photso/") == "; did you mean 'photos'?"
    assert near_path(f"{tmp_path}/photso") == f"; did you mean '{tmp_path}/photos'?"
    for none in ("zebras", "nowhere/photos", "\0", ""):
        assert near_path(none) == ""


def test_nothing_is_offered_where_nothing_is_near() -> None:
    assert did_you_mean("xyz", ["fit", "test"]) == ""
    assert did_you_mean("fit", []) == ""


@given(st.text(), st.lists(st.text(), max_size=5))
def test_any_words_give_a_sentence_end_or_nothing(given_word: str, known: list[str]) -> None:
    text = did_you_mean(given_word, known)
    assert text == "" or (text.startswith("; did you mean ") and text.endswith("?"))


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_a_run_error_is_no_input_error() -> None:
    assert issubclass(RunError, RuntimeError)
    assert not issubclass(RunError, InputError)


def test_a_message_is_one_line() -> None:
    assert one_line(OSError("cannot read\n  'a.png'\t:  gone ")) == "cannot read 'a.png' : gone"


def test_the_first_line_of_an_error() -> None:
    assert first_line(RuntimeError("\n  what\nand why")) == "what"
    assert first_line(RuntimeError()) == ""
