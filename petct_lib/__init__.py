"""PET ↔ CT translation of the lung: CycleGAN with diffusion refinement. For research and teaching, not diagnosis.

The packages, in the order in which data flows; `help(petct_lib.dicom)` goes on from there.
`python -m petct_lib --help` lists the commands.

    common        files, processes and progress: what every other package may use
    imaging       volumes, slices and intensities: the words that all other packages share
    dicom         DICOM studies to volumes in SUV and HU, and back
    phantom       seeded patients with their truth, in place of real ones
    data          slices that networks learn from
    models        networks, losses and the two stages of the method
    metrics       formulas of scores; arrays and masks in, numbers out
    inference     a trained run applied to images
    viz           pictures, charts and viewers
    training      the training loop, and the stages that it trains
    evaluation    every method on every test patient, and what follows from it
    experiments   whole runs, and what is made of them
    teaching      what the notebooks need beside the library
    cli           the commands
"""

__version__ = "0.1.0"

WARNING = "SYNTHETIC - NOT FOR DIAGNOSIS"


class InputError(Exception):
    """The input cannot be used; the message says what is wrong and what to do. Commands exit with code 2.

    where: the file, for the person who owns it. It may name a patient, so it is no part of the message, which may be
    stored or passed on.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where
