"""The training loop, and the stages that it trains.

loop        devices, schedule, watchers, exact resume
update      one optimiser step: precision, accumulation, clipping, averaging
interrupt   finish the step, save, then stop on Ctrl-C or SIGTERM
loggers     TensorBoard's files, and a plot that lives while a training runs
validation  scores of a stage under training
stage1      stage 1 of a run folder: CycleGAN
stage2      stage 2 of a run folder: pairs, regression, pix2pix, flow
"""
