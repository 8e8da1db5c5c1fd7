"""PET ↔ CT translation of the lung: CycleGAN with diffusion refinement. For research and teaching, not diagnosis."""

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
