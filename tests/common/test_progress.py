"""Plain bars where there are no widgets."""

import io

from petct_lib.common.progress import PLAIN, progress_bar


def test_plain_bar_goes_through_and_says_so(monkeypatch):
    monkeypatch.setenv(PLAIN, "1")
    out = io.StringIO()
    assert list(progress_bar([1, 2, 3], "reading", file=out)) == [1, 2, 3]
    assert "reading" in out.getvalue()
    assert "3/3" in out.getvalue()


def test_notebook_bar_goes_through(monkeypatch):
    monkeypatch.delenv(PLAIN, raising=False)
    assert list(progress_bar([1, 2], file=io.StringIO())) == [1, 2]
