"""What the notebooks need beside the library.

exercises  checks of the learner's answers
pitfalls   the field's mistakes, made on purpose
demo       the run that comes with the notebooks, and a new patient for it
"""
