"""Independent tasks over processes, results in the order of the tasks."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from tqdm import tqdm

from flexqwen.cli import InputError


def check_shared_memory(remedy: str) -> None:
    """Raises `InputError` where processes cannot share memory, as on a machine without a /dev/shm."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise InputError(f"there can be no worker processes ({error}; is /dev/shm there?); {remedy}") from error


class Pool:
    """`workers` processes that run tasks; with one worker the tasks run in this process.

    Workers are spawned (pyarrow's threads do not survive a fork), leave Ctrl-C to this process, which then stops their
    tasks, and end at once when it ends, so that nothing is written behind the next run's back.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self._executor = None

    def __enter__(self) -> "Pool":
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")
            check_shared_memory("try --workers 1")
            self._executor = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_obey_parent)
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        if self._executor:
            if error and not isinstance(error, Exception):
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGUSR1)  # see _stop; SIGTERM must end a worker, as of a broken pool
            self._executor.shutdown(cancel_futures=True)

    def map(
        self, function: Callable, tasks: Sequence[tuple], what: str, costs: Sequence[float] | None = None
    ) -> list[Any]:
        """`[function(*task) for task in tasks]` with a progress bar named `what`; the costliest tasks start first.

        The first task that fails stops the others, and its exception is raised; of several, that of the first task.
        """
        order = sorted(range(len(tasks)), key=lambda i: -costs[i]) if costs is not None else range(len(tasks))
        with tqdm(total=len(tasks), desc=what, disable=None, leave=False) as bar:
            if not self._executor:
                results = {}
                for i in order:
                    results[i] = function(*tasks[i])
                    bar.update()
                return [results[i] for i in range(len(tasks))]
            futures = {}
            try:  # a worker killed early breaks the pool while tasks are still submitted
                with delay_interrupts():
                    for i in order:
                        futures[i] = self._executor.submit(_run, function, *tasks[i])
                for future in futures.values():
                    future.add_done_callback(lambda _: bar.update())
                wait(futures.values(), return_when=FIRST_EXCEPTION)
                failed = [i for i, f in futures.items() if f.done() and not f.cancelled() and f.exception()]
                if failed:
                    raise futures[min(failed)].exception()
                return [futures[i].result() for i in range(len(tasks))]
            except BrokenProcessPool as error:
                died = "a worker process was killed (out of memory?); try fewer --workers"
                raise InputError(f"{what}: {died}") from error
            finally:
                for future in futures.values():
                    future.cancel()


@contextmanager
def delay_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and the processes that start in it never get it."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    held = []
    before = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    resource_tracker.ensure_running()  # started later, it would clear the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited, where a handler is not
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


# In a worker

_running = _stopped = False


def _run(function: Callable, *task) -> Any:
    """Runs a task. An interrupt in it is its result: the worker lives, and no half of a result blocks the parent."""
    global _running
    _running = True
    try:
        if _stopped:
            raise KeyboardInterrupt
        return function(*task)
    finally:
        _running = False


def end_with_parent() -> None:
    """From now on this process ends at once when the one that started it ends, however that ends."""

    def end() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _obey_parent() -> None:
    end_with_parent()
    signal.signal(signal.SIGUSR1, _stop)


def _stop(*_) -> None:
    global _stopped
    _stopped = True
    if _running:
        raise KeyboardInterrupt
