"""Files, processes and progress: what every other package may use.

files       files that are the old ones or the new ones, never half of one
parallel    one function over many items, in processes or on hosts
progress    bars that suit a notebook, a terminal, or a headless run
run_folder  every path of a run
memory      freed memory kept by the process, for speed
"""
