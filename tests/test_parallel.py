"""Worker processes: how they end."""

import os
import signal

import pytest

from flexqwen.cli import InputError
from flexqwen.parallel import Pool


def find_sigterm_handler(_) -> signal.Handlers:
    return signal.getsignal(signal.SIGTERM)


def kill_if(wanted: bool) -> None:
    if wanted:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_named_and_the_others_end():
    with Pool(2) as pool:
        # Python >= 3.12 ends the others of a broken pool with it, and waits for them.
        assert pool.map(find_sigterm_handler, [(1,), (2,)], "handlers") == [signal.SIG_DFL] * 2
        with pytest.raises(InputError, match="a worker process was killed"):
            pool.map(kill_if, [(True,), (False,)], "kill")
        with pytest.raises(InputError, match="a worker process was killed"):  # broken before a task is submitted
            pool.map(kill_if, [(False,), (False,)], "kill")
