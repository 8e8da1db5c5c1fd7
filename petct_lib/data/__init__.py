"""Slices that networks learn from.

download      Anti-PD-1_Lung from the NCI Imaging Data Commons, resumable and verified
prepare       studies to aligned slices on one grid, written once and memory-mapped
splits        splits by patient
datasets      unpaired and paired batches
augmentation  random changes of training slices
"""
