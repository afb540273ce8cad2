import pytest

from dropkey_cli.benchmark.settings import Precision
from dropkey_cli.commands import check, inspect
from dropkey_cli.commands.config_errors import tool_parser
from dropkey_cli.commands.option_list import tool_options
from dropkey_cli.commands.tool_options import TOOLS
from dropkey_cli.commands.tool_options import Precision as Listed


@pytest.mark.parametrize("command", sorted({*TOOLS} - {"check"}))
def test_the_table_is_what_the_parser_takes(command: str) -> None:
    parser: object = inspect._parser() if command == "inspect" else tool_parser(command)
    actions = {action.dest: action for action in parser._actions}  # type: ignore[attr-defined]  # argparse's
    listed = {option.name: option for option in tool_options(command)}
    assert set(listed) == set(actions) - {"help", "dropkey", "print_shtab"} - ({"model"} if command == "inspect" else set())


def test_check_takes_what_its_table_says() -> None:
    options = {name for action in check._parser()._actions for name in action.option_strings}
    assert options == {f"--{option.name}" for option in tool_options("check")}


def test_precisions_are_those_that_can_be_measured() -> None:
    assert Listed == Precision
