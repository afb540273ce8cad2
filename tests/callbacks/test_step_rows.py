from pathlib import Path

import pytest

from dropkey_cli.callbacks.step_rows import keep_rows_before


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("a,step\n1,0\n2,3\n3,4\n4,9\n", "a,step\n1,0\n2,3\n"),
        ("step,a\n0,x\n10,y\n9,z\n", "step,a\n0,x\n"),  # numbers, not words; each row by itself
        ('step,a\n0,"two\nlines, and ""more"""\n', 'step,a\n0,"two\nlines, and ""more"""\n'),
        ("step,a,b\n0,1,2\n3,1", "step,a,b\n0,1,2\n"),  # cut off by a kill
        ("step,a,b\n0,1,2\n", "step,a,b\n0,1,2\n"),
    ],
)
def test_later_rows_go(content: str, kept: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content, newline="")
    keep_rows_before(path, 4)
    assert path.read_text().replace("\r\n", "\n") == kept
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n"])
def test_a_file_without_steps_stays(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    keep_rows_before(path, 0)
    assert path.read_text() == content
