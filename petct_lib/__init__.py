"""PET ↔ CT translation of the lung: CycleGAN with diffusion refinement. For research and teaching, not diagnosis."""

__version__ = "0.1.0"

WARNING = "SYNTHETIC - NOT FOR DIAGNOSIS"


class InputError(Exception):
    """The input cannot be used; the message says what is wrong, where, and what to do. Commands exit with code 2."""
