import pytest

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.statistics import compare, mean_of
from dropkey_cli.ablation.wording import change, difference_text, is_share, mean_text, number, p_text, title

TITLES = {
    "none": Cell(),
    "attention dropout 0.1": Cell("attention_dropout", 0.1),
    "DropKey decreasing 0.3": Cell("dropkey", 0.3, "decreasing", structure="element"),
    "DropKey increasing mean 0.05 block 3×3": Cell("dropkey", 0.05, "increasing", True, "block", 3),
    "DropKey constant 0.3 key, Monte Carlo": Cell("dropkey", 0.3, "constant", structure="key", remedy="monte_carlo"),
    "attention dropout 0.3, finished without dropping": Cell("attention_dropout", 0.3, remedy="finish"),
}


@pytest.mark.parametrize(("words", "cell"), TITLES.items())
def test_a_title_is_what_people_call_a_cell(words: str, cell: Cell) -> None:
    assert title(cell) == words


def test_what_the_tasks_measure_is_a_share_or_not() -> None:
    names = ["acc1", "acc5", "balanced_acc", "map", "f1_micro", "f1_macro", "macro_f1", "exact_match", "hamming_loss"]
    assert all(is_share(f"test/{name}") for name in names)
    assert not any(
        is_share(name) for name in ("test/loss", "val/attention_entropy", "test/attention_top_key", "drop_ratio/mean")
    )


def test_shares_are_said_in_percent() -> None:
    assert (number(0.9004, "test/acc1"), number(0.9004, "test/loss")) == ("90.0", "0.9004")


@pytest.mark.parametrize(("value", "text"), [(0.026, "+2.6"), (-0.0014, "−0.1"), (-0.0004, "0.0"), (0.0, "0.0")])
def test_a_change_has_a_sign_unless_it_is_nothing(value: float, text: str) -> None:
    assert change(value, "test/acc1") == text


def test_as_much_is_said_as_is_known() -> None:
    values = {0: 0.91, 1: 0.93}
    assert mean_text(mean_of([]), "test/acc1") == "–"
    assert mean_text(mean_of([0.9]), "test/acc1") == "90.0"
    assert mean_text(mean_of(values.values()), "test/acc1") == "92.0 ± 1.0"
    assert difference_text(compare({}, values), "test/acc1") == "–"
    assert difference_text(compare({0: 0.9}, values), "test/acc1") == "−1.0"
    assert difference_text(compare({0: 0.9, 1: 0.92}, values), "test/acc1") == "−1.0 ± 0.0"
    # Cauchy: 1.5 ± 0.5 · tan(0.475 π) = 1.5 ± 6.4 points
    assert difference_text(compare({0: 0.92, 1: 0.95}, values), "test/acc1") == "+1.5 ± 0.5 [−4.9, +7.9]"


@pytest.mark.parametrize(("p", "text"), [(None, "–"), (0.0, "< 0.001"), (0.0456, "0.046"), (0.4, "0.40")])
def test_p_has_as_many_digits_as_matter(p: float | None, text: str) -> None:
    assert p_text(p) == text
