"""Networks, losses and the two stages of the method.

networks       generator, discriminator, U-Net
losses         adversarial, cycle and identity losses
stage          what a training asks of a model
cyclegan       stage 1: CycleGAN, image pool, and one training step
regression     stage 2, first part: a U-Net, and pix2pix
samplers       Euler, Heun and midpoint steps of a rectified flow, its path and times
residual_flow  stage 2, second part: diffusion of what the regression could not know
cycle_pairs    pairs for stage 2 without a real one
checkpoints    states on disk, whole or absent, and trained models from them
"""
