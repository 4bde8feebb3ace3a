"""Independent tasks over processes, results in the order of the tasks."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from flexqwen.cli import InputError


class Pool:
    """`workers` processes that run tasks; with one worker the tasks run in this process.

    Workers are spawned (pyarrow's threads do not survive a fork) and end at once when this process ends, however it
    ends, so that nothing is written behind the back of the next run.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self._executor = None

    def __enter__(self) -> "Pool":
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_end_with_parent)
        return self

    def __exit__(self, *_) -> None:
        if self._executor:
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
            futures = {i: self._executor.submit(function, *tasks[i]) for i in order}
            for future in futures.values():
                future.add_done_callback(lambda _: bar.update())
            try:
                wait(futures.values(), return_when=FIRST_EXCEPTION)
                failed = [i for i, f in futures.items() if f.done() and not f.cancelled() and f.exception()]
                if failed:
                    raise futures[min(failed)].exception()
                return [futures[i].result() for i in range(len(tasks))]
            except BrokenProcessPool as error:
                raise InputError(
                    f"{what}: a worker process was killed (out of memory?); try fewer --workers"
                ) from error
            finally:
                for future in futures.values():
                    future.cancel()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
