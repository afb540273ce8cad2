import torch

from dropkey_cli.report import page
from dropkey_cli.report.attention import ROLLOUT, AttentionMaps
from dropkey_cli.report.scores import ClassScores, Confusion
from tests.report.pages import Page, assert_self_contained

EVIL = '<script>alert("1")</script>&amp;'


def test_everything_that_is_given_is_text() -> None:
    maps = AttentionMaps({EVIL: torch.zeros(1, 2, 2)}, {}, "class token")
    parts = [
        page.tiles([(EVIL, EVIL)]),
        page.section(EVIL, EVIL, page.facts([(EVIL, EVIL)])),
        page.class_table([ClassScores(EVIL, 1, 0.5, 0.5, 0.5)]),
        page.confusion_table([Confusion(0, 0, 1, 0.5)], [EVIL]),
        page.contact_sheet([("data:image/png;base64,", EVIL, EVIL, EVIL, 0.5, 0.1)]),
        page.attention_table(maps, [EVIL], ["data:image/png;base64,"], {EVIL: [["data:image/png;base64,"]]}),
    ]
    found = assert_self_contained(page.page(EVIL, EVIL, parts))
    assert found.text.count(EVIL) == 2 + 2 + 2 + 2 + 1 + 2 + 3 + 2 + 1  # title and heading, …


def test_the_worst_classes_come_first_and_those_without_images_last() -> None:
    scores = [ClassScores("good", 5, 1, 1, 1), ClassScores("none", 0, 0, 0, 0), ClassScores("bad", 5, 0.1, 0.1, 0.1)]
    text = Page(page.class_table(scores)).text
    assert text.index("bad") < text.index("good") < text.index("none")
    many = [ClassScores(f"c{number}", 1, 1, 1, 1) for number in range(page.CLASSES + 7)]
    assert "7 more in per_class.csv" in Page(page.class_table(many)).text


def test_attention_has_a_column_for_each_map_and_kind() -> None:
    maps = torch.zeros(1, 2, 2)
    both = AttentionMaps({"a": maps, ROLLOUT: maps}, {"a": maps, ROLLOUT: maps}, "class token", {"a": 0.3})
    cells = [["data:image/png;base64,1", "data:image/png;base64,2"]]
    found = Page(page.attention_table(both, ["cat"], ["data:image/png;base64,0"], {"a": cells, ROLLOUT: cells}))
    assert found.text.count("one mask") == 2
    assert "a (drop ratio 0.3)all layers (rollout)" in found.text
    assert [address[-1] for address in found.addresses] == list("01212")


def test_no_confusion_is_a_sentence() -> None:
    assert "No image was taken for another class" in page.confusion_table([], [])
