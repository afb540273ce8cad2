import pytest

from dropkey_cli.errors import InputError
from dropkey_cli.tasks.labels import check_labels


def test_labels_of_the_kind_that_is_learnt_pass() -> None:
    check_labels(several=True, takes_several=True)
    check_labels(several=False, takes_several=False)


def test_labels_of_the_other_kind_are_refused_with_what_to_type() -> None:
    with pytest.raises(InputError, match=r"any number of labels .*--model dropkey_cli\.tasks\.multi_label\.MultiLabelClassif"):
        check_labels(several=True, takes_several=False)
    with pytest.raises(InputError, match=r"one label per image, .* leave out --model .* --data\.label_separator '\|'$"):
        check_labels(several=False, takes_several=True)
