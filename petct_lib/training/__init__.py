"""The training loop, and the stages that it trains.

loop            one training from its first step to its last: devices, schedule, log, pictures, stop
update          one optimiser step: precision, averaging over processes
saver           its checkpoint: what it was made with, exact resume
nan_guard       losses and weights that are not finite end it
interrupt       Ctrl-C and SIGTERM: noted, until the loop has finished its step and saved
loggers         TensorBoard's files, and a plot that lives while a training runs
validation      scores of a stage under training
train_cyclegan  stage 1 of a run folder: CycleGAN
train_refiner   stage 2 of a run folder: its coarse images and pairs, regression, pix2pix, flow
"""
