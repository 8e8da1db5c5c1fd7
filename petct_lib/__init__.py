"""PET ↔ CT translation of the lung: CycleGAN with diffusion refinement. For research and teaching, not diagnosis.

The modules, one job each, in the order in which data flows. `python -m petct_lib --help` lists the commands.

Data in: DICOM files to volumes in SUV and HU
    download        Anti-PD-1_Lung from the NCI Imaging Data Commons, resumable and verified
    archives        the files of a folder, a zip, a zip in a zip, or a folder of zips
    dicom_files     files to series of images with their headers, and the stored values of an image
    enhanced        multi-frame CT and PET: each frame's header as a classic slice's
    geometry        order of the slices and the stack's affine, from the headers alone
    suv             SUV factors from PET headers
    volume          an array with affine and unit; resampling in patient space; the body's mask
    dicom           studies of a PET and a CT, and reasons for what is left out

Phantom: seeded patients with their truth, in place of real ones
    canvas          where shapes are drawn: distance fields, painted as labels on the CT's grid
    tissues         HU and FDG uptake of each tissue
    skeleton        spine, ribs, sternum, shoulder girdle and arms
    trees           the lung's vessels
    anatomy         soft organs, and all shapes of a patient painted together
    lesions         lesions in lung, hilum, mediastinum, pleura and bone, and how they change
    benign          FDG uptake that is no tumour
    person          one person: what the studies have in common
    materials       labels to HU and SUV before imaging
    scanner         noise-free HU and SUV to a CT and a PET as measured
    vendors         series with the headers that the vendors' scanners write
    truth           truth beside the DICOM: volumes as NIfTI, masks as SEG
    organs          organs as measured in the images, beside what others measured in people
    phantom         patients from all of these, written as DICOM

Slices that networks learn from
    regions         masks of body, lung, soft tissue, bone and lesions, for scoring only
    structures      masks from structure sets (RTSTRUCT)
    prepare         studies to aligned slices on one grid, written once and memory-mapped
    intensity       HU and SUV to the networks' range and back
    augment         random changes of training slices
    data            splits by patient, unpaired and paired batches, controls without a network

Networks and training
    nets            generator, discriminator, U-Net
    cyclegan        losses, image pool, and one training step
    diffusion       rectified flow: path, velocity, samplers
    spectrum        how much of each spatial frequency is in an image, and a filter by frequency
    regression      stage 2, first part: a U-Net, and pix2pix
    residual_flow   stage 2, second part: diffusion of what the regression could not know
    cycle_pairs     pairs for stage 2 without a real one
    updates         one optimiser step: precision, accumulation, clipping, averaging
    train           the loop: devices, schedule, watchers, exact resume
    checkpoints     states on disk, whole or absent
    interrupt       Ctrl-C as a wish that is granted at the end of a step
    memory          freed memory kept by the process, for speed
    logs            TensorBoard's files, and a plot that lives while a training runs
    collapse        early signs that a GAN collapses or invents
    validation      scores of a stage under training
    train_cyclegan  stage 1 of a run folder
    train_refiner   stage 2 of a run folder: pairs, regression, pix2pix, flow
    translate       slices and volumes through all stages, with spread; a run applied to a study
    dicom_write     volumes to DICOM series, derived ones marked as synthetic

Scores
    metrics         errors of one patient's images: voxels, structure, spectrum
    lesion_scores   uptake of lesions; missed and invented ones
    downstream      what a synthetic CT is for: attenuation and lungs
    realism         a classifier's verdict on slices, and change from slice to slice
    perceptual      LPIPS on the pretrained AlexNet
    synthrad        the scores of the SynthRAD2025 challenge
    distribution    scores of samples: CRPS, coverage, spread and skill
    evaluate        every method on every test patient: the rows of `scores.csv`
    scores          rows to files, means over patients, and tables
    statistics      intervals, tests, effect sizes and agreement over patients
    compare         methods and runs against each other over the same patients
    failures        the worst slices and lesions of a run, chosen by rule
    score_files     anyone's synthetic images against the real ones

Shown and run
    view            pictures of slices
    charts          pictures of losses and scores
    explore         viewers: a volume in three planes, two images under a wiping edge, frames by sliders
    exercises       checks of the learner's answers
    pitfalls        the field's mistakes, made on purpose
    demo            a run made small enough to ship, and a new patient for it
    report          a run as one HTML page, model card and data card
    run             profiles, the four notebooks in order, and the manifest
    variants        what the ablation trains, by name
    ablation        what each part of stage 2 contributes
    files           files that are the old ones or the new ones, never half of one
    parallel        one function over many items, in processes or on hosts
    progress        bars that suit a notebook, a terminal, or a headless run
    __main__        the commands
"""

__version__ = "0.1.0"

WARNING = "SYNTHETIC - NOT FOR DIAGNOSIS"


class InputError(Exception):
    """The input cannot be used; the message says what is wrong and what to do. Commands exit with code 2.

    where: the file, for the person who owns it. It may name a patient, so it is no part of the message, which may be
    stored or passed on.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where
