"""Formulas of scores; arrays and masks in, numbers out.

rows               the columns of a row of scores, and what is wrong in some
voxelwise          MAE, MSE, RMSE, PSNR; a new score of voxels, too: its row is made in image_scores
structure          SSIM, spectrum distance, gain by a shift
image_scores       all scores of one patient's images
distribution       scores of samples: CRPS, coverage, spread and skill
realism            a classifier's verdict on slices, and change from slice to slice
perceptual         LPIPS on the pretrained AlexNet
lesion_scores      uptake of lesions; missed and invented ones
attenuation        what a synthetic CT is for: attenuation and lungs
synthrad           the scores of the SynthRAD2025 challenge
training_warnings  early signs that a GAN collapses or invents
statistics         intervals, tests, effect sizes and agreement over patients
"""
