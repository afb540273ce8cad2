"""Checks of a task's options, in words that name the option to type."""

from dropkey_cli.errors import InputError


def check_option(name: str, value: object, accepted: bool, expected: str) -> None:
    """Refuse a value.

    Args:
        name: The option's name without --model.
        value: What was given.
        accepted: Whether it will do.
        expected: What would do.

    Raises:
        InputError: If it will not.
    """
    if not accepted:
        raise InputError(f"{name} is {value!r}; expected {expected}; give --model.{name}")


def check_share(name: str, value: float, *, including_1: bool = False) -> None:
    """Refuse what is no share."""
    if including_1:
        check_option(name, value, 0 <= value <= 1, "a share from 0 to 1")
    else:
        check_option(name, value, 0 <= value < 1, "a share from 0 up to, but not including, 1")
