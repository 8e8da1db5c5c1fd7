"""Cases whose translations have known scores, and those of a run with untrained networks."""

import numpy as np

from petct_lib.data.splits import read_splits
from petct_lib.evaluation.cases import Case
from petct_lib.evaluation.methods import translate_patient
from petct_lib.inference.translator import Translator

SAMPLED = {"samples": 8, "steps": 1, "seed": 0}


def translated(prepared, run, atlas, direction="pet2ct", **values):
    """The first test patient of a run by all methods."""
    splits = read_splits(run)
    values = {**SAMPLED, "atlas": atlas, **values}
    return translate_patient(prepared, splits, splits["test"][0], direction, Translator(run), **values)


def case_of(prepared, kind, **images):
    """A patient with the images that functions make of the real one and its body."""
    patient = prepared.patients[0]
    pet, ct, body, lung = (np.array(prepared.patient_stack(patient, k)) for k in ("pet", "ct", "body", "lung"))
    source, real = (pet, ct) if kind == "ct" else (ct, pet)
    output = {name: make(real, body) for name, make in images.items()}
    sources = {"body": "HU threshold", "lung": "SEG"}
    return Case(patient, source, real, {"body": body, "lung": lung}, sources, output)


def value(rows, method, metric, region="body"):
    """The one score of these rows."""
    [result] = [r["value"] for r in rows if (r["method"], r["metric"], r["region"]) == (method, metric, region)]
    return result
