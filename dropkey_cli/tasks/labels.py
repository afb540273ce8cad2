"""Whether the labels of the data are those that a task learns."""

from dropkey_cli.errors import InputError


def check_labels(*, several: bool, takes_several: bool) -> None:
    """Refuse labels of the wrong kind before anything is computed.

    Args:
        several: Whether an image of the data may have any number of classes.
        takes_several: Whether the task learns such labels, and not one class per image.

    Raises:
        InputError: If they differ.
    """
    if several and not takes_several:
        raise InputError(
            "the data has any number of labels per image (multi-label), the task learns exactly one; "
            "give --model dropkey_cli.tasks.multi_label.MultiLabelClassification, or one label per image"
        )
    if takes_several and not several:
        raise InputError(
            "the data has one label per image, the task learns any number (multi-label); "
            "leave out --model for one label, or give a table whose labels are lists, or --data.label_separator '|'"
        )
