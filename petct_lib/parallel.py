"""One function over many items in worker processes, through joblib: this machine's, or the hosts of a Dask cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool

from petct_lib import InputError


def each(
    function: Callable, items: Sequence, *, jobs: int | None = None, progress: Callable = iter
) -> list[object | InputError]:
    """[function(item) for each item], in order; an item's InputError stands in the place of its result.

    jobs: processes; None: one a core. An item that kills its process (a decoder may crash on damaged data) costs
    itself alone. `joblib.parallel_config(backend="dask")` around the call spreads the items over a cluster.
    """
    results = {}
    tasks = (joblib.delayed(_guarded)(function, k, item) for k, item in enumerate(items))
    pool = joblib.Parallel(min(jobs or joblib.cpu_count(), max(len(items), 1)), return_as="generator_unordered")
    try:
        for k, result in progress(_Counted(pool(tasks), len(items))):
            results[k] = result
    except BrokenProcessPool:
        for k in set(range(len(items))) - set(results):
            results[k] = _alone(function, items[k])
    return [results[k] for k in range(len(items))]


class _Counted:
    """An iterator that knows how many items it has, so that a progress bar has an end."""

    def __init__(self, iterator: Iterable, count: int) -> None:
        self.iterator, self.count = iterator, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator:
        return iter(self.iterator)


def _guarded(function: Callable, k: int, item: object) -> tuple[int, object]:
    try:
        return k, function(item)
    except InputError as error:
        return k, error


def _alone(function: Callable, item: object) -> object | InputError:
    """In a process of its own, so that its end names the item that is at fault."""
    try:
        [(_, result)] = joblib.Parallel(2)([joblib.delayed(_guarded)(function, 0, item)])
    except BrokenProcessPool:
        return InputError("reading it ends the process: damaged compressed pixel data, or out of memory")
    return result
