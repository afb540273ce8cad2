import os
import shlex
from pathlib import Path

import pytest

from dropkey_cli.files import from_here, keep_earlier, resume_command, whole_file, whole_folder, write_csv


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "earlier"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_earlier_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"earlier")
    with pytest.raises(error), whole_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_content_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "a.bin", list[str]()
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append("folder" if path.exists() else "file"))
    with whole_file(path) as file:
        file.write(b"content")
    assert order == ["file", "folder"]


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"half of something longer")
    with whole_file(tmp_path / "a.bin") as file:
        file.write(b"whole")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.bin", b"whole")]


def test_earlier_files_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    assert keep_earlier(path) is None
    for content in "abc":
        keep_earlier(path)
        path.write_text(content)
    assert keep_earlier(path) == tmp_path / "p.3.csv"
    assert [(tmp_path / f"p.{number}.csv").read_text() for number in (1, 2, 3)] == ["a", "b", "c"]
    assert not path.exists()


def test_a_path_is_as_short_as_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "runs" / "a.ckpt") == from_here("runs/a.ckpt") == Path("runs/a.ckpt")
    assert from_here(tmp_path.parent / "a.ckpt") == tmp_path.parent / "a.ckpt"


@pytest.mark.parametrize("folder", ["runs/a/version_0", "runs/my run's $HOME; x/version_1"])
def test_the_command_to_go_on_can_be_pasted_into_a_shell(folder: str) -> None:
    assert shlex.split(resume_command(Path(folder))) == ["dropkey", "fit", "--resume", folder]
    assert resume_command(Path("runs/a/version_0")) == "dropkey fit --resume runs/a/version_0"


def test_a_folder_is_there_when_it_is_complete(tmp_path: Path) -> None:
    for target in (tmp_path / "a" / "b", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with whole_folder(target) as folder:
            (folder / "x").write_text("1")
            assert not (target / "x").exists()
        assert [file.name for file in target.iterdir()] == ["x"]
        assert [file.name for file in target.parent.iterdir() if file.name.startswith(".")] == []


def test_a_folder_that_fails_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_csv_file_keeps_names_that_are_no_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ("path", "class"), iter([(os.fsdecode(b"\xff.png"), 'a "b", c')]))
    assert (tmp_path / "a.csv").read_bytes() == b'path,class\n\xff.png,"a ""b"", c"\n'
