"""The files of a run: every path in one place."""

from pathlib import Path


class RunFolder:
    """Paths of a run under `path`; nothing is read or made.

    >>> RunFolder("runs/quick").checkpoint("flow_pet2ct").as_posix()
    'runs/quick/checkpoints/flow_pet2ct.pt'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.manifest = path / "manifest.json"  # what was asked for, versions, seconds; `finished` and `done`
        self.stages = path / "stages.json"  # what the notebooks recorded
        self.prepared = path / "prepared"  # aligned slices, see `data.prepare`
        self.splits = path / "splits.json"  # patients by role
        self.intensity = path / "intensity.json"  # the window of `imaging.intensity`
        self.checkpoints = path / "checkpoints"
        self.coarse = path / "coarse"  # coarse images of the training patients
        self.logs = path / "logs"  # TensorBoard's
        self.scores = path / "scores.csv"
        self.metrics = path / "metrics.json"  # means over patients, with intervals
        self.figures = path / "figures"
        self.notebooks = path / "notebooks"  # as they were executed
        self.synthetic = path / "synthetic"  # derived DICOM, by patient and direction
        self.report = path / "report.html"
        self.model_card = path / "model_card.md"
        self.data_card = path / "data_card.md"

    def checkpoint(self, name: str) -> Path:
        """The newest state of a training, such as `cyclegan` or `flow_pet2ct`."""
        return self.checkpoints / f"{name}.pt"
