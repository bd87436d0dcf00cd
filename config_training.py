"""Options of training, of evaluation, and of the report."""

from yacs.config import CfgNode as CN

TRAIN = CN()
# Always 0: a resumed run begins where its checkpoint ended.
TRAIN.START_EPOCH = 0
# Epochs in all.
TRAIN.EPOCHS = 300
# Epochs of linear warm-up, inside EPOCHS.
TRAIN.WARMUP_EPOCHS = 20
# Weight decay; free of it: biases, norms, position tables and tokens as the model says.
TRAIN.WEIGHT_DECAY = 0.05
# Peak learning rate per 512 images of the global batch.
TRAIN.BASE_LR = 5e-4
# Rate at the start of the warm-up, per 512 images.
TRAIN.WARMUP_LR = 5e-7
# Rate at the end of 'cosine' and 'onecycle', per 512 images; other schedules ignore it.
TRAIN.MIN_LR = 5e-6
# Greatest 2-norm of the gradient; 0: not clipped.
TRAIN.CLIP_GRAD = 5.0
# Whether to go on from the newest checkpoint in the run's folder.
TRAIN.AUTO_RESUME = True
# Micro-batches per optimizer step; 0 and 1: no accumulation.
TRAIN.ACCUMULATION_STEPS = 0
# Whether blocks are computed again in the backward pass, to save memory.
TRAIN.USE_CHECKPOINT = False
# [CheXpert] What USE_CHECKPOINT keeps beside a block's input: 'nothing', 'products' (of linears).
TRAIN.CHECKPOINT_KEEPS = 'nothing'
# [CheXpert] Compiled steps: 'none', 'auto' (on a GPU, if the run is long enough), 'max' (always).
TRAIN.COMPILE = 'auto'
# [CheXpert] How processes exchange gradients: 'float32', 'bfloat16' (half the bytes, rounded).
TRAIN.GRADIENT_EXCHANGE = 'float32'
# Fine-tuning: rate of a layer over that of the next one, in (0, 1].
TRAIN.LAYER_DECAY = 1.0
# [CheXpert] Checkpoints inside an epoch, every this many optimizer steps; 0: none.
TRAIN.SAVE_EVERY_STEPS = 0
# [CheXpert] Checkpoints inside an epoch, every this many minutes; 0: none.
TRAIN.SAVE_EVERY_MINUTES = 0.0
# [CheXpert] What a loss or gradient that is not finite does: 'stop', 'skip' (that step).
TRAIN.ON_NAN = 'stop'
# [CheXpert] 'skip': so many steps of the run may be skipped; one more stops it.
TRAIN.NAN_LIMIT = 10
# [CheXpert] Whether only deterministic algorithms run: bit for bit the same on one machine, slower.
TRAIN.DETERMINISTIC = False
# [CheXpert] Minutes that a process waits for the others before it ends with an error.
TRAIN.RANK_TIMEOUT_MINUTES = 30.0

TRAIN.LR_SCHEDULER = CN()
# 'cosine', 'linear', 'step', 'multistep', and (not in SimMIM) 'onecycle'.
TRAIN.LR_SCHEDULER.NAME = 'cosine'
# 'step': epochs between two drops.
TRAIN.LR_SCHEDULER.DECAY_EPOCHS = 30
# 'step': factor of a drop.
TRAIN.LR_SCHEDULER.DECAY_RATE = 0.1
# 'multistep': factor of a drop.
TRAIN.LR_SCHEDULER.GAMMA = 0.1
# 'multistep': epochs of the drops, ascending, the first not before the warm-up's end.
TRAIN.LR_SCHEDULER.MULTISTEPS = []

TRAIN.OPTIMIZER = CN()
# 'adamw', 'sgd', in any case.
TRAIN.OPTIMIZER.NAME = 'adamw'
# AdamW: added to the denominator.
TRAIN.OPTIMIZER.EPS = 1e-8
# AdamW: decay of the first and second moments, each in [0, 1).
TRAIN.OPTIMIZER.BETAS = (0.9, 0.999)
# SGD: Nesterov momentum, in (0, 1).
TRAIN.OPTIMIZER.MOMENTUM = 0.9

FINETUNE = CN()
# [CheXpert] What is fitted: 'full', 'last_layer' (trained); 'linear_probe', 'knn' (on features).
FINETUNE.MODE = 'full'

EVAL = CN()
# [CheXpert] Views that are scored: 'frontal', 'lateral', 'all'; '': as DATA.VIEWS.
EVAL.VIEWS = ''
# [CheXpert] What a score counts: 'study' or 'image'.
EVAL.LEVEL = 'study'
# [CheXpert] A study's probability over its images: 'max', 'mean'.
EVAL.AGGREGATE = 'max'
# [CheXpert] Where the best checkpoint is chosen: 'holdout', 'valid' (the report warns of it).
EVAL.SELECT_ON = 'holdout'
# [CheXpert] By which mean AUROC: 'five' (tasks), 'all' (labels), 'auto' (five where defined).
EVAL.SELECT = 'auto'
# [CheXpert] Held-out images that pre-training scores after each epoch; 0: all.
EVAL.HOLDOUT_IMAGES = 256
# [CheXpert] Views of an image that are averaged: 'none', 'crops' (centre and four corners).
EVAL.TTA = 'none'
# [CheXpert] Whether each is averaged with its mirror image, too.
EVAL.TTA_FLIP = False
# [CheXpert] Checkpoints whose probabilities --eval averages, paths; []: one checkpoint.
EVAL.ENSEMBLE = []
# [CheXpert] Whether predictions over the training images are written, too.
EVAL.PREDICT_TRAIN = False
# [CheXpert] Rule of the thresholds, on held-out patients: 'youden', 'f1', 'sensitivity'.
EVAL.THRESHOLD = 'youden'
# [CheXpert] The sensitivity wanted by 'sensitivity'.
EVAL.SENSITIVITY = 0.9
# [CheXpert] Bootstrap resamples of the patients behind each interval; 0: no intervals.
EVAL.RESAMPLES = 1000
# [CheXpert] Further columns to score by, of the CSVs or of DATA.DEMOGRAPHICS, such as ['RACE'].
EVAL.GROUPS = []
# [CheXpert] Where age bands begin, in years.
EVAL.AGE_BANDS = [0, 40, 60, 80]

REPORT = CN()
# [CheXpert] Whether fine-tuning and --eval end with report.html and what belongs to it.
REPORT.WRITE = True
# [CheXpert] Saliency maps by label and kind (true or false, positive or negative); 0: none.
REPORT.MAPS = 2
# [CheXpert] How they are made: 'grad_cam', or (ViT, the same for all labels) 'rollout'.
REPORT.METHOD = 'grad_cam'
# [CheXpert] Whether reports name images by salted hashes; predictions_*.csv keep their paths.
REPORT.ANONYMISE = False
