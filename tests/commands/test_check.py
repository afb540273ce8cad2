import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dropkey_cli.commands.check import shown
from tests.data.odd_images import ODD, write_all

Dropkey = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
TODO = "Repair or remove what cannot be read, or train with --data.on_error skip, which leaves it out"


@pytest.fixture
def root(dropkey: Dropkey) -> Path:
    """Five small images, in the empty folder where the command runs."""
    colours = iter(range(0, 250, 10))
    for split, name, count in (("train", "cat", 2), ("train", "dog", 1), ("val", "cat", 1), ("val", "dog", 1)):
        folder = Path("root", split, name)
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (next(colours), 0, 0)).save(folder / f"{number}.png")
    return Path("root")


@pytest.mark.parametrize("words", [["root"], ["--data.root", "root"], ["--data.root=root", "--num_workers", "1"]])
def test_a_clean_folder(words: list[str], root: Path, dropkey: Dropkey) -> None:
    code, out, err = dropkey("check", *words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split() for line in lines[:1] + lines[2:5]] == [
        ["class", "train", "val"],
        ["cat", "2", "1"],
        ["dog", "1", "1"],
        ["2", "classes", "3", "2"],
    ]
    assert lines[5:] == ["", "Nothing is wrong: all 5 images can be read."]


def test_every_unreadable_file_is_listed_with_its_reason(root: Path, dropkey: Dropkey) -> None:
    write_all(root / "train/cat")
    code, out, err = dropkey("check", "root", "--num_workers", "0")
    assert (code, err) == (1, "")
    listed = out.split("cannot be read (")[1].split("\n\n")[0].splitlines()[1:]
    bad = [name for name, odd in ODD.items() if odd.reason]
    assert sorted(line.split(": ")[0].strip() for line in listed) == sorted(f"root/train/cat/{name}" for name in bad)
    assert "  root/train/cat/empty.jpg: the file is empty" in listed
    assert "is so" not in out
    assert out.splitlines()[-1].startswith(TODO)


def test_names_that_would_break_a_line_are_escaped(root: Path, dropkey: Dropkey) -> None:
    (root / "val/cat/new\nline.png").write_bytes(b"")
    out = dropkey("check", "root", "--num_workers", "0")[1]
    assert "  'root/val/cat/new\\nline.png': the file is empty\n" in out
    assert shown("a\udcffb") == "'a\\udcffb'"
    assert shown("ünï [red] ☃.png") == "ünï [red] ☃.png"


def test_shared_images_and_conflicting_labels_are_listed(root: Path, dropkey: Dropkey) -> None:
    shutil.copy(root / "train/cat/0.png", root / "val/cat/copy.png")
    code, out, _ = dropkey("check", "root", "--num_workers", "0")
    assert code == 1
    assert "the same image in two splits (1):\n  root/train/cat/0.png = root/val/cat/copy.png\n" in out
    assert "labels" not in out
    assert out.splitlines()[-1].startswith("Keep each image in one split only")
    (root / "val/cat/copy.png").unlink()
    shutil.copy(root / "train/cat/0.png", root / "train/dog/copy.png")
    code, out, _ = dropkey("check", "root", "--num_workers", "0")
    assert code == 1
    assert "the same image with two labels (1):\n  root/train/cat/0.png = root/train/dog/copy.png\n" in out
    assert "splits" not in out
    assert out.splitlines()[-1] == "Keep each image in one class only."


def test_what_is_only_noted_is_no_fault(root: Path, dropkey: Dropkey) -> None:
    for number in range(3):
        Image.new("L", (9, 9), number).save(root / f"train/cat/grey{number}.png")
    shutil.copy(root / "train/cat/grey0.png", root / "train/cat/grey3.png")
    shutil.rmtree(root / "val/dog")
    code, out, _ = dropkey("check", "root", "--num_workers", "0")
    assert code == 0
    assert "val has no image of 1 class(es): 'dog'\n" in out
    assert "       4 grey or black and white, repeated as red, green and blue, e.g. root/train/cat/grey0.png\n" in out
    assert "       1 with the content of another file of their class and split\n" in out


def test_many_classes_are_summed_up(dropkey: Dropkey) -> None:
    for number in range(31):
        Path(f"many/c{number:02d}").mkdir(parents=True)
        for image in range(1 if number == 7 else 2):
            Image.new("RGB", (9, 9), (number, image, 0)).save(f"many/c{number:02d}/{image}.png")
    Path("many/c30/2.png").write_bytes(Path("many/c30/1.png").read_bytes())
    out = dropkey("check", "many", "--num_workers", "0")[1]
    assert [line.split()[-1] for line in out.splitlines()[2:6]] == ["1", "2", "3", "62"]
    assert "scarcest of all: c07 (1), c00 (2), c01 (2), c02 (2), c03 (2)\n" in out
    assert "31 classes" in out
    assert "c29" not in out


def test_json_says_everything(root: Path, dropkey: Dropkey) -> None:
    (root / "train/dog/empty.png").touch()
    shutil.copy(root / "train/cat/0.png", root / "val/dog/copy.jpg")
    shutil.rmtree(root / "val/cat")
    code, out, err = dropkey("check", "root", "--json", "--num_workers", "0")
    assert (code, err) == (1, "")
    shared = [
        {"path": "root/train/cat/0.png", "split": "train", "class_name": "cat"},
        {"path": "root/val/dog/copy.jpg", "split": "val", "class_name": "dog"},
    ]
    assert json.loads(out) == {
        "clean": False,
        "missing": {"val": ["cat"]},
        "images": {"train": {"cat": 2, "dog": 2}, "val": {"cat": 0, "dog": 2}},
        "unreadable": [{"path": "root/train/dog/empty.png", "reason": "the file is empty"}],
        "in_two_splits": [shared],
        "two_labels": [shared],
        "repeated": 0,
        "notes": {
            "other_format": {
                "text": "another format inside than their name says",
                "num_files": 1,
                "example": "root/val/dog/copy.jpg",
            }
        },
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no folder is given; expected ROOT/train/CLASS"),
        (["nowhere"], "--data.root 'nowhere' does not exist; expected ROOT/train/CLASS"),
        (["root/train/cat"], "found 0 class(es) (none) in 'root/train/cat'; expected ROOT/train/CLASS"),
        (["root", "--data.root", "root"], "ROOT is given twice, 'root' and 'root': leave one out"),
        (["root", "--num_workers", "-1"], "num_workers is -1; expected 0 or more; give e.g. --num_workers 4"),
        (["root", "--num_workers", "x"], "argument --num_workers: invalid int value: 'x'; give the folder: dropkey check ROOT"),
        (["root", "--jsn"], "unrecognized arguments: --jsn; give the folder: dropkey check ROOT"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, root: Path, refused: Refused) -> None:
    assert refused("check", *words).startswith(message)


def test_a_process_reads_without_a_word_on_standard_error(root: Path) -> None:
    write_all(root / "train/cat")
    command = [sys.executable, "-W", "default", "-m", "dropkey_cli", "check", "root", "--num_workers", "2"]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 1
    assert [line for line in done.stderr.decode().splitlines() if "PIL" in line or "pixels" in line] == []


def test_a_table_is_checked_as_a_folder_is(root: Path, dropkey: Dropkey) -> None:
    (root / "val/cat/copy.png").write_bytes((root / "train/cat/0.png").read_bytes())
    (root / "train/dog/empty.png").touch()
    names = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    lines = [f"{name}\t{name.parts[1]}\t{name.parts[0]}" for name in names]
    (root / "table.tsv").write_text("\n".join(["file\tbreed\tsplit", *lines]))
    folder = dropkey("check", "root", "--json", "--num_workers", "0")
    table = dropkey("check", "root/table.tsv", "--data.label_column", "breed", "--json", "--num_workers", "0")
    assert table == folder
    assert table[0] == 1
    with (root / "table.tsv").open("a") as file:
        file.write("\ngone.png\tcat\ttrain")
    out = dropkey("check", "--data.root=root/table.tsv", "--data.label_column=breed", "--num_workers=0")[1]
    assert "  root/gone.png: [Errno 2] No such file or directory: 'root/gone.png'\n" in out


def test_an_image_with_several_labels_counts_for_each(root: Path, dropkey: Dropkey) -> None:
    (root / "t.csv").write_text("path,labels\ntrain/cat/0.png,cat|dog\ntrain/cat/1.png,cat\nval/dog/0.png,\n")
    out = dropkey("check", "root/t.csv", "--data.label_separator", "|", "--num_workers", "0")[1]
    assert [line.split() for line in out.splitlines()[2:4]] == [["cat", "2"], ["dog", "1"]]
    assert "Nothing is wrong" in out


def test_tables_that_cannot_be_checked_are_refused(root: Path, refused: Refused) -> None:
    assert refused("check", "gone.csv").startswith("'gone.csv' cannot be read (No such file or directory)")
    assert refused("check", "root", "--data.label_column", "x").startswith("--data.label_column is for a table, *.csv, *.tsv")
    (root / "t.csv").write_text("path,label\n")
    assert refused("check", "root/t.csv").startswith("'root/t.csv' has no rows; expected an image and its label in each")
    (root / "t.csv").write_text("path,label\na.png\n")
    assert refused("check", "root/t.csv").startswith("1 row(s) cannot be used: t.csv:2 has 1 cells, the first line 2")
