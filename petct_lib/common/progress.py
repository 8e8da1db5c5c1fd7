"""Progress bars: widgets in a notebook, plain lines in a terminal and in a headless run."""

import os
from collections.abc import Iterable

from tqdm import tqdm as plain_bar
from tqdm.auto import tqdm as notebook_bar

PLAIN = "PETCT_PLAIN_PROGRESS"  # set by `python -m petct_lib run`, whose terminal shows no widgets


def progress_bar(iterable: Iterable, desc: str = "", **options: object) -> plain_bar:
    """A tqdm bar over `iterable` with a description; options go to tqdm."""
    if os.environ.get(PLAIN):
        return plain_bar(iterable, desc=desc, mininterval=5.0, ncols=100, **options)
    return notebook_bar(iterable, desc=desc, mininterval=0.5, **options)
