"""Work in processes: the order kept, an item's failure its own, and the same on a Dask cluster."""

import os
import time

import pytest
from conftest import SMALL

from petct_lib import InputError
from petct_lib.common.parallel import dask_cluster, parallel_map, run_isolated
from petct_lib.data.prepare import SliceSettings, prepare
from petct_lib.phantom.cohort import write_phantom


def work(item: object) -> object:
    """Fails in the way that the item names."""
    if item == "bad":
        raise InputError("this one is bad", "its file")
    if item == "crash":
        os._exit(1)
    if item == "bug":
        raise KeyError("a mistake in the code")
    if item == "slow":
        time.sleep(0.5)
    return item


def test_results_come_in_the_order_of_the_items():
    assert parallel_map(work, ["slow", 1, 2, 3], jobs=2) == ["slow", 1, 2, 3]
    assert parallel_map(work, []) == []


def test_an_input_error_stands_in_the_place_of_its_result():
    first, second, third = parallel_map(work, [1, "bad", 3], jobs=2)
    assert (first, third) == (1, 3)
    assert isinstance(second, InputError)
    assert (str(second), second.where) == ("this one is bad", "its file")


def test_an_item_that_kills_its_process_costs_itself_alone():
    results = parallel_map(work, [1, 2, "crash", 4, "bad", 6], jobs=2)
    assert [r for r in results if not isinstance(r, InputError)] == [1, 2, 4, 6]
    assert "ends the process" in str(results[2])
    assert "bad" in str(results[4])


def test_a_single_item_that_kills_its_process_leaves_the_caller_alive():
    assert "ends the process" in str(run_isolated(work, "crash"))
    assert run_isolated(work, 7) == 7


def test_mistakes_in_the_code_are_not_hidden():
    with pytest.raises(KeyError):
        parallel_map(work, [1, "bug"], jobs=2)


def test_progress_counts_the_items():
    seen = []

    def progress(items):
        seen.append(len(items))
        for item in items:
            seen.append("one")
            yield item

    assert parallel_map(work, [1, 2, 3], jobs=2, progress=progress) == [1, 2, 3]
    assert seen == [3, "one", "one", "one"]


def test_a_cluster_that_is_not_there_says_so(monkeypatch):
    monkeypatch.setattr("petct_lib.common.parallel.CONNECT_S", 1.0)
    with pytest.raises(InputError, match="no Dask scheduler answers"), dask_cluster("tcp://127.0.0.1:1"):
        pass


@pytest.mark.slow
def test_a_dask_cluster_prepares_the_same_slices(tmp_path):
    """Two worker processes of a local cluster stand for two hosts; the folder is one that all can see."""
    from distributed import LocalCluster

    data = write_phantom(tmp_path / "data", 4, 3, SMALL)
    settings = SliceSettings(32, None, 16.0)
    here = prepare(data, tmp_path / "here", settings, jobs=1)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as hosts:
        with dask_cluster(hosts.scheduler_address):
            there = prepare(data, tmp_path / "there", settings)
            pids = set(parallel_map(pid_of, range(20)))
        workers = {worker.pid for worker in hosts.workers.values()}
    assert there.fingerprint == here.fingerprint
    assert pids <= workers
    assert os.getpid() not in pids


def pid_of(_: int) -> int:
    """Who does the work."""
    time.sleep(0.02)
    return os.getpid()
