import os
from pathlib import Path

import pytest

from dropkey_cli.callbacks.step_rows import keep_rows_before

HEADER = "epoch,step,loss\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def kept(path: Path, text: str, step: int) -> str:
    path.write_bytes(text.encode())
    keep_rows_before(path, step)
    assert list(path.parent.iterdir()) == [path]
    return path.read_bytes().decode()


def test_rows_from_the_step_on_are_removed(path: Path) -> None:
    rows = ["0,9,0.5\n", "0,19,\n", "0,10,0.25\n", "1,20,1e-3\n", "1,100,2\n"]
    assert kept(path, HEADER + "".join(rows), 20) == HEADER + "".join(rows[:3])
    assert kept(path, HEADER + "".join(rows), 0) == HEADER
    assert kept(path, HEADER + "".join(rows), 101) == HEADER + "".join(rows)


def test_what_is_kept_stays_byte_for_byte(path: Path) -> None:
    text = 'name,step\r\n"a, ""b""",3\r\n  é ,4\r\n'
    assert kept(path, text, 5) == text


@pytest.mark.parametrize("end", ["0,1", "0,12,0.3", "", "0,", "\0\0"])
def test_a_line_cut_short_is_removed(path: Path, end: str) -> None:
    assert kept(path, HEADER + "0,3,1\n" + end, 50) == HEADER + "0,3,1\n"


def test_rows_without_a_step_are_removed(path: Path) -> None:
    assert kept(path, HEADER + "0,,1\n\n7\n0,x,1\n0,3,1\n", 50) == HEADER + "0,3,1\n"


@pytest.mark.parametrize("text", ["", "epoch,st"])
def test_a_file_without_its_first_line_becomes_empty(path: Path, text: str) -> None:
    assert kept(path, text, 5) == ""


def test_a_missing_file_stays_missing(path: Path) -> None:
    keep_rows_before(path, 5)
    assert list(path.parent.iterdir()) == []


def test_the_old_file_is_whole_until_the_new_one_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(HEADER + "0,1,1\n0,2,1\n")
    before, done = path.read_bytes(), list[str]()

    def replace(new: Path, old: Path) -> None:
        assert path.read_bytes() == before
        assert new.read_text() == HEADER + "0,1,1\n"
        assert done == ["fsync"]
        raise OSError("the machine stops here")

    monkeypatch.setattr(os, "fsync", lambda _: done.append("fsync"))
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="the machine stops here"):
        keep_rows_before(path, 2)
    assert path.read_bytes() == before
