import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from dropkey_cli.data.named.tar_files import Place, TarReader, find_tars, kept_rows, tar_members, tar_split
from dropkey_cli.errors import InputError
from tests.data.formats import write_tar

FILES = [(f"{'long' * 40}/{number}.bin", bytes([number]) * (number * 37)) for number in range(20)]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_place_holds_what_tarfile_reads(kind: int, tmp_path: Path) -> None:
    files = [(name[-60:], content) for name, content in FILES] if kind == tarfile.USTAR_FORMAT else FILES
    path = str(write_tar(tmp_path / "a.tar", files, format=kind))
    members = list(tar_members(path))
    assert [member.name for member in members] == [name for name, _ in files]
    reader = TarReader(Place(member.name, path, member.offset, member.size, "") for member in members)
    with tarfile.open(path) as archive:
        for position, member in enumerate(members):
            expected = archive.extractfile(member.name)
            assert expected is not None
            assert reader(position).read() == expected.read() == files[position][1]


def test_an_archive_in_an_archive_is_a_folder(tmp_path: Path) -> None:
    inner = write_tar(tmp_path / "inner.tar", FILES[:3]).read_bytes()
    path = str(write_tar(tmp_path / "outer.tar", [("first.txt", b"1"), ("n01.tar", inner), ("./last.txt", b"22")]))
    members = list(tar_members(path))
    assert [member.name for member in members] == ["first.txt", *(f"n01/{name}" for name, _ in FILES[:3]), "last.txt"]
    reader = TarReader(Place(member.name, path, member.offset, member.size, "") for member in members)
    assert [reader(position).read() for position in range(5)] == [b"1", *(content for _, content in FILES[:3]), b"22"]


def test_links_and_folders_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert list(tar_members(str(tmp_path / "a.tar"))) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no archive" * 200, "invalid header|truncated header|bad checksum"), (None, "No such file"), (b"", "empty")],
)
def test_what_is_no_archive_is_refused_by_name(content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(
        InputError, match=rf"'.*a\.tar' cannot be read as a tar file \(.*({reason}).*expected an uncompressed tar"
    ):
        list(tar_members(str(tmp_path / "a.tar")))


def test_compressed_and_torn_archives_are_refused(tmp_path: Path) -> None:
    compressed = io.BytesIO()
    with tarfile.open(fileobj=compressed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    whole = write_tar(tmp_path / "whole.tar", FILES).read_bytes()
    for name, content in (("gz.tar", compressed.getvalue()), ("torn.tar", whole[:3000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}' cannot be read as a tar file"):
            list(tar_members(str(tmp_path / name)))


def test_an_archive_that_shrinks_gives_an_error_for_the_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    *_, last = tar_members(str(path))
    path.write_bytes(path.read_bytes()[: last.offset + 5])
    reader = TarReader([Place("x", str(path), last.offset, last.size, "")])
    with pytest.raises(OSError, match=r"a\.tar ends too early"):
        reader(0)


class Contents(Dataset[bytes]):
    """What is read at each position."""

    def __init__(self, read: Any) -> None:  # noqa: ANN401 - a TarReader
        self.read = read

    def __len__(self) -> int:
        return len(FILES)

    def __getitem__(self, position: int) -> bytes:
        return bytes(self.read(position).read())


def test_processes_that_load_images_share_no_open_file(tmp_path: Path) -> None:
    path = str(write_tar(tmp_path / "a.tar", FILES))
    places = [Place(member.name, path, member.offset, member.size, "only") for member in tar_members(path)]
    split = tar_split(places, {"only": 0})
    assert split.read(7) is not None  # the parent has read before it forks
    loaded = DataLoader(Contents(split.read), num_workers=2, batch_size=None)
    assert list(loaded) == [content for _, content in FILES]
    copy = Contents(pickle.loads(pickle.dumps(split.read)))
    assert [copy[position] for position in range(20)] == [content for _, content in FILES]


def test_rows_are_made_anew_when_an_archive_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dropkey_cli.data.kept_listing.SLOW", -1.0)
    monkeypatch.setattr("dropkey_cli.data.kept_listing.SETTLED", -3600.0)
    path, made = str(write_tar(tmp_path / "a.tar", FILES[:2])), []

    def rows(archive: str) -> list[str]:
        made.append(archive)
        return [member.name for member in tar_members(archive)]

    first = kept_rows("names", [path], rows)
    assert kept_rows("names", [path], rows) == first == {path: [name for name, _ in FILES[:2]]}
    assert len(made) == 1
    write_tar(tmp_path / "a.tar", FILES[1:3])
    assert kept_rows("names", [path], rows) == {path: [name for name, _ in FILES[1:3]]}
    assert kept_rows("other names", [path], lambda archive: [1]) == {path: [1]}


def test_archives_are_found_in_a_folder_with_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a [1] *"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.tar", "deep/a.tar", "c.txt"):
        (folder / name).touch()
    assert find_tars(str(folder)) == [str(folder / "b.tar"), str(folder / "deep/a.tar")]


def test_a_file_with_holes_whose_bytes_do_not_lie_together_is_none(tmp_path: Path) -> None:
    sparse = {"major": "1", "minor": "0", "name": "holes.bin", "realsize": "2048"}
    content = b"1\n1024\n512\n".ljust(512, b"\0") + b"x" * 512  # 512 bytes at 1024, and nothing before and after
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, headers in (("holes.bin", {f"GNU.sparse.{key}": value for key, value in sparse.items()}), ("b.bin", {})):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), headers
            archive.addfile(member, io.BytesIO(content))
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [member.issparse() for member in archive] == [True, False]
    assert [member.name for member in tar_members(str(tmp_path / "a.tar"))] == ["b.bin"]
