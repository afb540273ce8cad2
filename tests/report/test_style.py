import re
from pathlib import Path

from dropkey_cli.report import page
from dropkey_cli.report.style import CSS


def test_braces_match_and_nothing_is_fetched() -> None:
    assert CSS.count("{") == CSS.count("}")
    assert "url(" not in CSS
    assert "@import" not in CSS


def test_every_class_of_the_page_has_its_style() -> None:
    source = Path(page.__file__).read_text(encoding="utf-8")
    used = {name for names in re.findall(r'class="([a-z]+)"', source) for name in names.split()}
    assert used
    assert {name for name in used if f".{name}" not in CSS} == set()


def test_dark_screens_and_paper_have_their_colours() -> None:
    names = set(re.findall(r"--[a-z]+(?=:)", CSS.partition("@media")[0]))
    dark, paper = re.findall(r"@media [^{]*\{ :root \{([^}]*)\}", CSS)
    assert names - {"--bar"} <= set(re.findall(r"--[a-z]+(?=:)", dark))
    assert names - {"--bar"} <= set(re.findall(r"--[a-z]+(?=:)", paper))
