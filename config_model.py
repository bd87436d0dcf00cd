"""Options of the models, of what they learn by, and of contrastive pre-training."""

from yacs.config import CfgNode as CN

MODEL = CN()
# Encoder: 'swin' (reads MODEL.SWIN), 'vit' (MODEL.VIT), and (not in SimMIM) 'timm' (MODEL.TIMM).
MODEL.TYPE = 'swin'
# [CheXpert] How 'swin' and 'vit' are pre-trained: 'simmim', 'mae' (ViT, visible patches alone).
MODEL.PRETRAIN = 'simmim'
# Folder below OUTPUT, and the logger's name; selects nothing.
MODEL.NAME = 'swin_tiny_patch4_window7_224'
# Checkpoint to go on from, a path or an https address; '': the newest in the run's folder.
MODEL.RESUME = ''
# Outputs of the classifier; CheXpert's labels: 14.
MODEL.NUM_CLASSES = 1000
# Dropout after embedding, attention and MLP, in [0, 1).
MODEL.DROP_RATE = 0.0
# Stochastic depth of the last block, growing from 0 at the first, in [0, 1).
MODEL.DROP_PATH_RATE = 0.1
# Label smoothing, in [0, 1); CheXpert's labels: 0.
MODEL.LABEL_SMOOTHING = 0.1
# [CheXpert] How attention is computed: 'auto', 'eager', 'sdpa'.
MODEL.ATTENTION = 'auto'

MODEL.SWIN = CN()
# Side of a token, in pixels.
MODEL.SWIN.PATCH_SIZE = 4
# Input channels: 1 (grey) or 3 (grey X-rays are repeated).
MODEL.SWIN.IN_CHANS = 3
# Width of the first stage; each stage doubles it.
MODEL.SWIN.EMBED_DIM = 96
# Blocks per stage.
MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
# Attention heads per stage; each divides its stage's width.
MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
# Side of an attention window, in tokens; divides each stage's side that is larger.
MODEL.SWIN.WINDOW_SIZE = 7
# Width of the MLP over width of the block.
MODEL.SWIN.MLP_RATIO = 4.0
# Whether queries, keys and values have a bias.
MODEL.SWIN.QKV_BIAS = True
# Scale of the queries; None: 1 / sqrt(width of a head).
MODEL.SWIN.QK_SCALE = None
# Whether an absolute position embedding is added.
MODEL.SWIN.APE = False
# Whether a LayerNorm follows the patch embedding.
MODEL.SWIN.PATCH_NORM = True

MODEL.VIT = CN()
# Side of a token, in pixels.
MODEL.VIT.PATCH_SIZE = 16
# Input channels: 1 (grey) or 3 (grey X-rays are repeated).
MODEL.VIT.IN_CHANS = 3
# Width.
MODEL.VIT.EMBED_DIM = 768
# Blocks.
MODEL.VIT.DEPTH = 12
# Attention heads; they divide the width.
MODEL.VIT.NUM_HEADS = 12
# Width of the MLP over width of the block (SimMIM's 4, which fractions may replace).
MODEL.VIT.MLP_RATIO = 4.0
# Whether queries and values have a bias (keys never have).
MODEL.VIT.QKV_BIAS = True
# Start of the layer scales; None: no layer scales.
MODEL.VIT.INIT_VALUES = 0.1
# Whether an absolute position embedding is added.
MODEL.VIT.USE_APE = False
# Whether the classifier reads the mean of the patch tokens, not the class token.
MODEL.VIT.USE_MEAN_POOLING = False
# Whether each block has a relative position bias of its own.
MODEL.VIT.USE_RPB = False
# Whether all blocks share one relative position bias (with USE_RPB: added to it).
MODEL.VIT.USE_SHARED_RPB = True
# [CheXpert] Whether fixed sine-cosine positions are added (MAE's); USE_APE learns them.
MODEL.VIT.USE_SINCOS = False

MODEL.TIMM = CN()
# [CheXpert] A classifier of timm, such as 'resnet50', 'densenet121', 'vit_small_patch16_224'.
MODEL.TIMM.NAME = 'resnet50'
# [CheXpert] Input channels: 1 (grey) or 3 (grey X-rays are repeated).
MODEL.TIMM.IN_CHANS = 3

MODEL.SIMMIM = CN()
# [CheXpert] Head: 'linear', 'mlp', 'inverse_swin_nano', 'inverse_swin_t', 'inverse_swin_b'.
MODEL.SIMMIM.HEAD = 'linear'
# [CheXpert] Distance of reconstruction and image: 'l1', 'l2', 'smooth_l1'.
MODEL.SIMMIM.LOSS = 'l1'
# [CheXpert] Pixels that the loss counts: 'masked', 'all'.
MODEL.SIMMIM.LOSS_PIXELS = 'masked'
# [CheXpert] Side of what is predicted, in values, each an average of pixels; 0: DATA.IMG_SIZE.
MODEL.SIMMIM.TARGET_SIZE = 0
# [CheXpert] What is predicted: 'pixels', 'patch_normalised' (each masking unit standardised).
MODEL.SIMMIM.TARGET = 'pixels'

MODEL.MAE = CN()
# [CheXpert] Width of the decoder.
MODEL.MAE.DECODER_EMBED_DIM = 512
# [CheXpert] Blocks of the decoder.
MODEL.MAE.DECODER_DEPTH = 8
# [CheXpert] Attention heads of the decoder; they divide its width.
MODEL.MAE.DECODER_NUM_HEADS = 16
# [CheXpert] Whether each patch is predicted less its mean, over its standard deviation.
MODEL.MAE.NORM_PIX_LOSS = False

LOSS = CN()
# [CheXpert] Loss of the labels: 'bce', 'weighted_bce', 'focal', 'asymmetric' (models/losses.py).
LOSS.NAME = 'bce'
# [CheXpert] 'focal': exponent.
LOSS.GAMMA = 2.0
# [CheXpert] 'focal': weight of positives, 1 - ALPHA of negatives, in [0, 1]; None: both 1.
LOSS.ALPHA = None
# [CheXpert] 'asymmetric': exponent of positives.
LOSS.GAMMA_POS = 0.0
# [CheXpert] 'asymmetric': exponent of negatives.
LOSS.GAMMA_NEG = 4.0
# [CheXpert] 'asymmetric': negatives of probability below this count nothing, in [0, 1).
LOSS.CLIP = 0.05

CONTRASTIVE = CN()
# [CheXpert] Method of main_contrastive.py: 'moco', 'simclr', 'byol', 'swav'.
CONTRASTIVE.METHOD = 'moco'
# [CheXpert] Width of what is compared; None: 128, of 'byol' 256.
CONTRASTIVE.DIM = None
# [CheXpert] Divides cosines; None: 0.07 'moco', 0.1 'simclr' and 'swav'; 'byol' has none.
CONTRASTIVE.TEMPERATURE = None
# [CheXpert] 'moco', 'byol': share of itself that the slow encoder keeps; None: 0.999, 0.996.
CONTRASTIVE.MOMENTUM = None
# [CheXpert] 'moco': keys of earlier batches, a multiple of a batch on all processes.
CONTRASTIVE.QUEUE_SIZE = 4096
# [CheXpert] 'swav': prototypes; at most twice the images of a batch on all processes.
CONTRASTIVE.NUM_PROTOTYPES = 3000
# [CheXpert] 'swav': first optimizer steps in which the prototypes do not learn.
CONTRASTIVE.FREEZE_PROTOTYPES_STEPS = 0
# [CheXpert] 'swav': small crops of an image beside its two views (SwAV: 6); 0: none.
CONTRASTIVE.LOCAL_CROPS = 0
# [CheXpert] Area of a small crop [low, high].
CONTRASTIVE.LOCAL_CROP_AREA = [0.05, 0.14]
# [CheXpert] Side of a small crop, in pixels; 0: DATA.IMG_SIZE, all that Swin and ViT take.
CONTRASTIVE.LOCAL_SIZE = 0
# [CheXpert] Probability that a view is blurred.
CONTRASTIVE.BLUR = 0.5
