"""Whole runs, and what is made of them.

profiles  the parameters of the notebooks
pipeline  the four notebooks in order, the manifest, and what is printed at the end
variants  what the ablation trains, by name
ablation  what each part of stage 2 contributes
report    a run as one HTML page, model card and data card
slim      a run made small enough to ship
"""
