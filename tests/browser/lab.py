"""A JupyterLab server of its own: a free port, a token, and no setting of the person who runs it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 180
OVERRIDES = {
    # every cell is in the page, also those that nobody has scrolled to
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


@dataclass(frozen=True)
class Lab:
    """A running server over the folder `root`."""

    root: Path
    url: str
    token: str

    def address(self, notebook: Path) -> str:
        """Where the browser finds a notebook below `root`, in a workspace without the tabs of the one before."""
        return f"{self.url}lab/tree/{notebook.relative_to(self.root).as_posix()}?reset&token={self.token}"


@contextmanager
def running_lab(root: Path, private: Path, library: Path) -> Iterator[Lab]:
    """JupyterLab over `root`, its settings and its log in `private`, its kernels with `library` on their path."""
    settings = private / "lab"
    settings.mkdir(parents=True)
    (settings / "overrides.json").write_text(json.dumps(OVERRIDES))
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
        "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={root}",
        f"--LabApp.app_settings_dir={settings}",
    ]  # fmt: skip
    with (private / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=root, env=environment(private, library), stdout=log, stderr=log)
        try:
            yield _reached(server, root, private)
        finally:
            _stop(server)


def environment(private: Path, library: Path) -> dict[str, str]:
    """The variables of the server and its kernels: every folder of Jupyter and IPython below `private`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "PETCT_"))}
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
               "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")  # fmt: skip
    return kept | {name: str(private / name.lower()) for name in folders} | {"PYTHONPATH": str(library)}


def _reached(server: subprocess.Popen, root: Path, private: Path) -> Lab:
    """Waits for the file in which the server says where it listens, and its token."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        for path in (private / "jupyter_runtime_dir").glob("jpserver-*.json"):
            if text := path.read_text():
                words = json.loads(text)
                return Lab(root, words["url"], words["token"])
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{(private / 'server.log').read_text()[-3000:]}")


def _stop(server: subprocess.Popen) -> None:
    """Ends the server, which ends its kernels."""
    server.terminate()
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        server.kill()
