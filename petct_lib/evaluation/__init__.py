"""Every method on every test patient, and what follows from it.

methods      the methods that are compared, and their images of a patient
cases        a test patient with images, masks and translations
scoring      every method on every test patient: the rows of `scores.csv`
tables       rows to files, means over patients, and tables
compare      methods and runs against each other over the same patients
worst_cases  the worst slices and lesions of a run, chosen by rule
external     anyone's synthetic images against the real ones
"""
