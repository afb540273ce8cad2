import pytest

from dropkey_cli.benchmark.settings import Precision
from dropkey_cli.commands import inspect
from dropkey_cli.commands.config_errors import tool_parser
from dropkey_cli.commands.option_list import tool_options
from dropkey_cli.commands.tool_options import TOOLS
from dropkey_cli.commands.tool_options import Precision as Listed


@pytest.mark.parametrize("command", TOOLS)
def test_the_table_is_what_the_parser_takes(command: str) -> None:
    parser: object = inspect._parser() if command == "inspect" else tool_parser(command)
    actions = {action.dest: action for action in parser._actions}  # type: ignore[attr-defined]  # argparse's
    listed = {option.name: option for option in tool_options(command)}
    assert set(listed) == set(actions) - {"help", "dropkey", "print_shtab"} - ({"model"} if command == "inspect" else set())


def test_precisions_are_those_that_can_be_measured() -> None:
    assert Listed == Precision
