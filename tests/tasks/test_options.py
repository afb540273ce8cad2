import pytest

from dropkey_cli.errors import InputError
from dropkey_cli.tasks.options import check_option, check_share


def test_what_is_accepted_says_nothing() -> None:
    check_option("lr", 0.1, True, "0 or more")
    check_share("mixup", 0.0)
    check_share("mixup", 1.0, including_1=True)


@pytest.mark.parametrize(("value", "including_1"), [(-0.1, False), (1.0, False), (1.1, True), (-0.1, True)])
def test_what_is_no_share_is_refused_by_name(value: float, including_1: bool) -> None:
    with pytest.raises(InputError, match=rf"^drop_path is {value}; expected a share from 0 .*1; give --model.drop_path$"):
        check_share("drop_path", value, including_1=including_1)
