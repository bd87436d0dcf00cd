"""Options of the images: what is read, what they go through, how they are augmented."""

from yacs.config import CfgNode as CN

DATA = CN()
# Images per process and micro-batch.
DATA.BATCH_SIZE = 128
# Root folder: of the CSV files and images ('chexpert'), or of a tree of images ('folder').
DATA.DATA_PATH = ''
# [CheXpert] Folder on each node's own disk that a packed store is copied into first; '': none.
DATA.CACHE_DIR = ''
# What DATA_PATH holds: 'imagenet' (as 'folder'), [CheXpert] 'folder', 'chexpert', 'mimic-cxr'.
DATA.DATASET = 'imagenet'
# Side of the model's square input, in pixels.
DATA.IMG_SIZE = 224
# Resizing in fine-tuning: 'random', 'bilinear', 'bicubic', 'lanczos', 'hamming'.
DATA.INTERPOLATION = 'bicubic'
# Whether batches lie in page-locked memory, for faster copies to a GPU.
DATA.PIN_MEMORY = True
# Loader processes per training process; 0 loads in the process itself.
DATA.NUM_WORKERS = 8
# Side of a masking unit, in pixels: divides IMG_SIZE, is a multiple of the model's patch.
DATA.MASK_PATCH_SIZE = 32
# Share of the masking units that is hidden, in (0, 1).
DATA.MASK_RATIO = 0.6
# [CheXpert] Names of the label files inside DATA_PATH; the test file may be absent.
DATA.TRAIN_CSV = 'train.csv'
# [CheXpert] Validation labels.
DATA.VALID_CSV = 'valid.csv'
# [CheXpert] Test labels.
DATA.TEST_CSV = 'test.csv'
# [CheXpert] Suffix of the images on disk where it is not the CSV's, such as '.png'; '': the CSV's.
DATA.IMAGE_SUFFIX = ''
# [CheXpert] Views that are trained on: 'frontal', 'lateral', 'all'.
DATA.VIEWS = 'frontal'
# [CheXpert] What is learned: 'observations' (14), 'any_finding', 'effusion' (against No Finding).
DATA.TASK = 'observations'
# [CheXpert] What an uncertain mention (-1) becomes in training: a name of data.labels.POLICIES.
DATA.UNCERTAIN = 'ones'
# [CheXpert] Exceptions, label: policy, such as {'Edema': 'zeros'}; replaces what BASE gave.
DATA.UNCERTAIN_BY_LABEL = CN(new_allowed=True)
# [CheXpert] For 'self_train': predictions over the training images of a run with 'ignore'.
DATA.SELF_TRAIN_PREDICTIONS = ''
# [CheXpert] CSV of pseudo-labels of training patients outside the subset, trained on too; '': none.
DATA.PSEUDO_LABELS = ''
# [CheXpert] What a blank (no mention) counts as: 'negative', 'ignore'.
DATA.BLANK = 'negative'
# [CheXpert] Share of the training patients that is used, in (0, 1]; seeded, smaller inside larger.
DATA.TRAIN_FRACTION = 1.0
# [CheXpert] This many training images, of the first patients; 0: as TRAIN_FRACTION says.
DATA.TRAIN_IMAGES = 0
# [CheXpert] Order of fine-tuning's epochs: 'uniform', 'weighted' (by inverse label frequency).
DATA.SAMPLER = 'uniform'
# [CheXpert] What an image goes through first: 'none', 'equalize', 'clahe', 'denoise'.
DATA.PREPROCESS = 'none'
# [CheXpert] CSV in DATA_PATH with more columns of each patient, such as race; '': none.
DATA.DEMOGRAPHICS = ''
# [CheXpert] MIMIC-CXR: whose labels are read, 'chexpert', 'negbio'.
DATA.LABELLER = 'chexpert'
# [CheXpert] Share of the training patients held out in all stages, the same ones, in [0, 1).
DATA.HOLDOUT_FRACTION = 0.02
# [CheXpert] Mean per channel of pixels in [0, 1]; []: 0.503 for 1 channel, ImageNet's for 3.
DATA.MEAN = []
# [CheXpert] Standard deviation per channel of pixels in [0, 1]; []: 0.292, or ImageNet's for 3.
DATA.STD = []
# [CheXpert] Statistics that normalise an image: 'dataset' (MEAN, STD) or 'image' (its own).
DATA.NORMALIZE = 'dataset'
# [CheXpert] Which units are hidden together: 'random', 'square', 'block'.
DATA.MASK_TYPE = 'random'
# [CheXpert] Whether 'folder' may pre-train on a root with train.csv or valid.csv: on scored images.
DATA.ALLOW_ALL_IMAGES = False
# [CheXpert] Resizing in pre-training: 'bilinear', 'bicubic', 'lanczos', 'hamming'.
DATA.PRETRAIN_INTERPOLATION = 'bilinear'
# [CheXpert] What an image that cannot be used does in training: 'error' (stop), 'skip' (another).
DATA.BAD_IMAGE = 'error'
# [CheXpert] 'skip': so many different images may be bad; one more stops the run.
DATA.BAD_IMAGE_LIMIT = 100

AUG = CN()
# Brightness and contrast jitter, contrastive and (AUTO_AUGMENT 'none') fine-tuning; 0: off.
AUG.COLOR_JITTER = 0.4
# timm policy of ImageNet fine-tuning, such as SimMIM's here; CheXpert's labels: 'none'.
AUG.AUTO_AUGMENT = 'rand-m9-mstd0.5-inc1'
# Fine-tuning: probability of random erasing.
AUG.REPROB = 0.25
# What an erased area is filled with: 'const', 'rand' (a value per area), 'pixel' (a value each).
AUG.REMODE = 'pixel'
# Erased areas per image, at least 1.
AUG.RECOUNT = 1
# Beta parameter of Mixup; CheXpert's labels: 0 (off).
AUG.MIXUP = 0.8
# Beta parameter of CutMix; CheXpert's labels: 0 (off).
AUG.CUTMIX = 1.0
# Range of CutMix's ratio [low, high] in place of CUTMIX; CheXpert's labels: None.
AUG.CUTMIX_MINMAX = None
# Probability that a batch is mixed.
AUG.MIXUP_PROB = 1.0
# Probability of CutMix where both are on.
AUG.MIXUP_SWITCH_PROB = 0.5
# What shares a mixing ratio: 'batch', 'pair', 'elem'.
AUG.MIXUP_MODE = 'batch'
# [CheXpert] Area of crops [low, high]; []: [0.67, 1], contrastive [0.3, 1], fine-tuning [0.08, 1].
AUG.CROP_AREA = []
# [CheXpert] Probability of a horizontal flip, all stages.
AUG.HFLIP = 0.5
# [CheXpert] Not SimMIM and MAE: greatest rotation, in degrees; 0: none.
AUG.ROTATION = 0.0
# [CheXpert] Not SimMIM and MAE: greatest shift, as a share of the side; 0: none.
AUG.TRANSLATE = 0.0
# [CheXpert] Not SimMIM and MAE: range of enlargement [low, high]; []: none.
AUG.SCALE = []
# [CheXpert] Not SimMIM and MAE: greatest shear, in degrees; 0: none.
AUG.SHEAR = 0.0
# [CheXpert] Not SimMIM and MAE: how far corners move, as a share of half the side; 0: none.
AUG.DISTORTION = 0.0

TEST = CN()
# Evaluation: enlarge by 256/224 and crop the centre; False: resize the whole image to the square.
TEST.CROP = True
