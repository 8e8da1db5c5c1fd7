"""One function over many items in worker processes, through joblib: this machine's, or the hosts of a Dask cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool

from petct_lib import InputError

CONNECT_S = 30.0  # a scheduler that has not answered by then is not there


def parallel_map(
    function: Callable, items: Sequence, *, jobs: int | None = None, progress: Callable = iter
) -> list[object | InputError]:
    """[function(item) for each item], in order; an item's InputError stands in the place of its result.

    jobs: processes; None: one a core. An item that kills its process (a decoder may crash on damaged data) costs itself
    alone. Within `dask_cluster`, the items are spread over its hosts.
    """
    results = {}
    tasks = (joblib.delayed(_try)(function, k, item) for k, item in enumerate(items))
    pool = joblib.Parallel(min(jobs or joblib.cpu_count(), max(len(items), 1)), return_as="generator_unordered")
    try:
        for k, result in progress(_Counted(pool(tasks), len(items))):
            results[k] = result
    except BrokenProcessPool:
        for k in set(range(len(items))) - set(results):
            results[k] = run_isolated(function, items[k])
    return [results[k] for k in range(len(items))]


def require_all(results: list[object | InputError]) -> list:
    """What `parallel_map` gave, where every item is needed; raises the first InputError among them."""
    for result in results:
        if isinstance(result, InputError):
            raise result
    return results


@contextmanager
def dask_cluster(scheduler: str | None) -> Iterator[None]:
    """Within: `parallel_map` works on the hosts of the Dask cluster with this scheduler; None: on this machine.

    scheduler: "tcp://host:8786". The hosts need this library, and the data and run folders under the same paths.
    Raises InputError where `distributed` is not installed or the scheduler does not answer.
    """
    if scheduler is None:
        yield
        return
    try:
        from distributed import Client

        client = Client(scheduler, timeout=CONNECT_S)
    except ImportError:
        raise InputError("a cluster needs the extra `hosts`: pip install 'petct-lib[hosts]'") from None
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler!r} ({type(error).__name__})") from None
    with client, joblib.parallel_config(backend="dask"):
        yield


class _Counted:
    """An iterator that knows how many items it has, so that a progress bar has an end."""

    def __init__(self, iterator: Iterable, count: int) -> None:
        self.iterator, self.count = iterator, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator:
        return iter(self.iterator)


def _try(function: Callable, k: int, item: object) -> tuple[int, object]:
    try:
        return k, function(item)
    except InputError as error:
        return k, error


def run_isolated(function: Callable, item: object) -> object | InputError:
    """function(item), or its InputError, from a process of its own: should that end, it names the item at fault.

    In a process of `parallel_map` it is done there, which comes to the same.
    """
    try:
        [(_, result)] = joblib.Parallel(2)([joblib.delayed(_try)(function, 0, item)])
    except BrokenProcessPool:
        return InputError("reading it ends the process: damaged compressed pixel data, or out of memory")
    return result
