import json
from pathlib import Path

from dropkey_cli.report.numbers import read_numbers, write_numbers


def test_numbers_are_plain_json_even_where_they_are_none(tmp_path: Path) -> None:
    write_numbers(tmp_path, {"epoch": 3, "val/acc1": 0.5, "val/loss": float("nan"), "val/x": float("-inf")})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == read_numbers(tmp_path)
    assert read_numbers(tmp_path) == {"epoch": 3, "val/acc1": 0.5, "val/loss": None, "val/x": None}
    write_numbers(tmp_path, read_numbers(tmp_path))  # what was null stays it
    assert (tmp_path / "metrics.json").read_text() == text


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert read_numbers(tmp_path) == {}
