import errno

import pytest

from dropkey_cli.commands.failures import explained
from dropkey_cli.errors import InputError, RunError

BUS = (
    "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared "
    "memory. Please try to raise your shared memory limit."
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), r"^writing failed \(.*No space left.*\): free some space"),
        (RuntimeError(BUS), r"^the processes that load images ran out of shared memory .*--shm-size=4g, .*num_workers 0$"),
        (RuntimeError("unable to mmap 9 bytes from file </torch_1_2_3>: Cannot allocate memory (12)"), "out of shared memory"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "out of shared memory"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            r"^a process that loads images \(number 7\) was ended by the signal 'Killed', .* fewer --data.num_workers",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), r"\(number 7, 8\) has ended unexpectedly"),
        (OSError(errno.EMFILE, "Too many open files"), r"too many files open: ulimit -n 65536"),
        (RuntimeError("received 0 items of ancdata"), r"too many files open: ulimit -n 65536"),
        (RuntimeError("Connection closed by peer [127.0.0.1]"), r"^another process of this run has ended"),
    ],
)
def test_failures_of_the_machine_are_one_sentence(error: Exception, message: str) -> None:
    for outer in (error, ValueError("wrapped")):
        if outer is not error:
            outer.__cause__ = error
        found = explained(outer)
        assert isinstance(found, RunError)
        with pytest.raises(RunError, match=message):
            raise found


def test_what_was_refused_stays_what_it_is() -> None:
    refused = InputError("no")
    wrapped = RuntimeError("Caught InputError in DataLoader worker process 0.")
    wrapped.__cause__ = refused
    assert explained(refused) is explained(wrapped) is refused


def test_of_other_errors_nothing_is_said() -> None:
    for error in (ValueError("x"), RuntimeError("x"), OSError(errno.ENOENT, "x"), ValueError("Too many open files"), None):
        assert explained(error) is None
