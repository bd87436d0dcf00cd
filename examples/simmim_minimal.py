r"""SimMIM for chest X-rays in one file: the first file of this project to read.

    python examples/simmim_minimal.py [DIR]

SimMIM (Xie et al. 2022, arXiv:2111.09886) hides parts of images and trains a network to predict the
hidden pixels from the visible ones, which needs no labels. The command does so for two minutes on
two CPU cores, with the X-rays of a folder in CheXpert's layout (default: the 1,000 X-rays of NIH in
examples/xrays). It saves simmim_minimal.pth in the present folder. Fine-tuning takes the encoder
without the mask token, and puts a new linear head on the mean of the features of all patches:

    python main_finetune.py --data-path DIR --pretrained simmim_minimal.pth \
        --cfg configs/vit_nano__demo/simmim_finetune__vit_nano__img64__demo.yaml

tests/parity/test_simmim_minimal.py keeps this file equal to the whole program, bit for bit:

    python main_simmim.py --cfg configs/vit_nano__demo/simmim_pretrain__vit_nano__img64__demo.yaml \
        --data-path DIR --amp-opt-level O0 --opts TRAIN.EPOCHS 20 TRAIN.WARMUP_EPOCHS 2

Letters in shapes: B images in a batch, S pixels along a side of an image, h patches along a side,
L = h * h patches, N = 1 + L tokens (first the class token), D features of a token, H heads.
"""

import math
import sys
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

# The options have SimMIM's names. In brackets: the values of SimMIM's ViT-B for ImageNet.
IMG_SIZE = 64  # S (224)
PATCH_SIZE = 8  # side of a patch in pixels (16)
GRID_SIZE = IMG_SIZE // PATCH_SIZE  # h (14)
MASK_PATCH_SIZE = 16  # side in pixels of the squares that are hidden or visible as a whole (32)
MASK_RATIO = 0.6  # share of the squares that are hidden, rounded up: 10 of 16 (0.6)
EMBED_DIM, DEPTH, NUM_HEADS = 128, 6, 4  # D, number of blocks, H (768, 12, 12)
BATCH_SIZE = 32  # B (2048)
EPOCHS, WARMUP_EPOCHS = 20, 2  # (800, 10)
# SimMIM states learning rates per 512 images, and scales them with the batch size.
WARMUP_LR = 1.6e-5 * (BATCH_SIZE / 512)  # where the warm-up starts (5e-7)
BASE_LR = 0.016 * (BATCH_SIZE / 512)  # where it ends (1e-4)
MIN_LR = 1.6e-4 * (BATCH_SIZE / 512)  # where the training ends (5e-6)
WEIGHT_DECAY, CLIP_GRAD = 0.05, 5.0  # the second is the largest norm of a gradient (0.05, 5)
SEED = 0
MEAN, STD = 255 * 0.503, 255 * 0.292  # of the pixels of CheXpert, from 0 to 255

# 1. Images and masks ----------------------------------------------------------------------------


class XrayDataset(Dataset):
    """Random views of the training images [1, S, S], each with a random mask [h, h]."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.epoch = folder, 0
        table = pd.read_csv(folder / 'train.csv')
        # Path is like CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg, of which the
        # first name is that of the folder. The table also has labels, which are not used.
        files = table['Path'].str.partition('/')[2]
        patients = table['Path'].str.extract(r'(patient\d+)/')[0]
        # A tenth of the patients is held out. Fine-tuning chooses its checkpoint by them, so they
        # must be new to the network. Sorting by a hash holds out the same ones in every run.
        order = sorted(set(patients), key=lambda p: blake2b(p.encode(), key=b'holdout').digest())
        is_held_out = patients.isin(order[: math.ceil(len(order) / 10)])
        self.files = files[(table['Frontal/Lateral'] == 'Frontal') & ~is_held_out]
        # scripts/pack.py packs images into Arrow files, which pandas reads if pyarrow is installed.
        packed = [pd.read_feather(path) for path in sorted(folder.glob('*.arrow'))]
        self.packed = pd.concat(packed).set_index('name') if packed else None

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        file, row = self.files.iloc[index], self.files.index[index]
        if self.packed is None:
            image = Image.open(self.folder / file).convert('L')  # grey levels
            width, height = image.size
        else:
            packed = self.packed.loc[file]
            image = Image.frombytes('L', (packed['width'], packed['height']), packed['pixels'])
            width, height = packed['full_width'], packed['full_height']
        # The random numbers of a sample depend on SEED, epoch and row, and not on other samples.
        rng = np.random.Generator(np.random.Philox(key=[SEED, self.epoch], counter=[0, row, 0, 0]))
        left, top, right, bottom = random_box(rng, width, height)
        # In pixels of the image, which packing may have made smaller. float32 has 1/1024 exactly.
        left, right = (round(1024 * x * image.width / width) / 1024 for x in (left, right))
        top, bottom = (round(1024 * y * image.height / height) / 1024 for y in (top, bottom))
        x, y = math.floor(left), math.floor(top)
        view = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
        box, size = (left - x, top - y, right - x, bottom - y), (IMG_SIZE, IMG_SIZE)
        pixels = np.asarray(view.resize(size, Image.Resampling.BILINEAR, box), np.float32)
        pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels  # flipped or not
        return torch.from_numpy((pixels[None] - MEAN) / STD), torch.from_numpy(random_mask(rng))


def random_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Draw left, top, right and bottom of the part of an image that a sample shows."""
    # Of ten pairs of an area (67 to 100 % of the image) and an aspect (width / height, 3/4 to 4/3,
    # drawn as its logarithm), the first that fits into the image counts (SimMIM, section 4.1).
    pairs = rng.uniform((0.67, math.log(3 / 4)), (1, math.log(4 / 3)), size=(10, 2))
    top, left = rng.random(2)
    for share, log_aspect in pairs:
        area, aspect = share * height * width, math.exp(log_aspect)
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if box_width <= width and box_height <= height:
            left, top = int(left * (width - box_width + 1)), int(top * (height - box_height + 1))
            break
    else:  # None fits, which is rare: the largest box with such an aspect, in the middle.
        box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """Draw which patches are hidden (1) and which are visible (0), [h, h]."""
    # Squares of several patches are hidden as a whole (SimMIM, section 3.2). The pixels of a single
    # patch could be guessed from its neighbours, without any knowledge of chests.
    side = IMG_SIZE // MASK_PATCH_SIZE
    mask = np.zeros(side**2, np.uint8)
    order = np.argsort(rng.random(side**2), kind='stable')  # a random order of the squares
    mask[order[: math.ceil(side**2 * MASK_RATIO)]] = 1
    # From one number per square to one per patch.
    scale = MASK_PATCH_SIZE // PATCH_SIZE
    return mask.reshape(side, side).repeat(scale, axis=0).repeat(scale, axis=1)


# 2. A Vision Transformer (arXiv:2010.11929) in the style of BEiT (arXiv:2106.08254), head, loss --


class RelativePositionBias(nn.Module):
    """Return the numbers that attention adds to its logits [H, N, N], the same in all blocks."""

    def __init__(self) -> None:
        super().__init__()
        # They are learnt for each distance of two patches, down and to the right. Nothing else
        # tells the encoder where a patch is. From -(h - 1) to h - 1, shifted to begin with 0.
        patch, num_distances = torch.arange(GRID_SIZE**2), 2 * GRID_SIZE - 1
        row, column = patch // GRID_SIZE, patch % GRID_SIZE
        down = row[:, None] - row + GRID_SIZE - 1  # [L, L]
        right = column[:, None] - column + GRID_SIZE - 1
        index = F.pad(num_distances * down + right, (1, 0, 1, 0))  # [N, N]
        # The class token has no place: three more rows are for it as query, as key, and as both.
        num_pairs = num_distances**2
        index[0, :], index[:, 0], index[0, 0] = num_pairs, num_pairs + 1, num_pairs + 2
        self.register_buffer('relative_position_index', index)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_pairs + 3, NUM_HEADS))

    def forward(self) -> Tensor:
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class Attention(nn.Module):
    """Mix tokens [B, N, D]: softmax(q k^T / sqrt(D / H) + bias) v in each head."""

    def __init__(self) -> None:
        super().__init__()
        # Keys have no bias: it would add the same to all logits of a query, which softmax ignores.
        self.q_bias = nn.Parameter(torch.zeros(EMBED_DIM))
        self.v_bias = nn.Parameter(torch.zeros(EMBED_DIM))
        self.qkv = nn.Linear(EMBED_DIM, 3 * EMBED_DIM, bias=False)
        self.proj = nn.Linear(EMBED_DIM, EMBED_DIM)

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias)  # [B, N, 3 D]
        q, k, v = qkv.unflatten(2, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, D / H]
        q = q * (EMBED_DIM // NUM_HEADS) ** -0.5
        logits = q @ k.transpose(2, 3) + position_bias  # [B, H, N, N]
        x = logits.softmax(dim=3) @ v  # [B, H, N, D / H]
        return self.proj(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Mix tokens [B, N, D] by attention, then change each token by itself."""

    def __init__(self) -> None:
        super().__init__()
        # Learnt factors. They are small at first, so that a block changes its tokens only a little.
        self.gamma_1 = nn.Parameter(torch.full((EMBED_DIM,), 0.1))
        self.gamma_2 = nn.Parameter(torch.full((EMBED_DIM,), 0.1))
        self.norm1 = nn.LayerNorm(EMBED_DIM, eps=1e-6)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(EMBED_DIM, eps=1e-6)
        fc1, fc2 = nn.Linear(EMBED_DIM, 4 * EMBED_DIM), nn.Linear(4 * EMBED_DIM, EMBED_DIM)
        self.mlp = nn.ModuleDict({'fc1': fc1, 'fc2': fc2})

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x), position_bias)
        return x + self.gamma_2 * self.mlp['fc2'](F.gelu(self.mlp['fc1'](self.norm2(x))))


class VisionTransformerForSimMIM(nn.Module):
    """Encode images [B, 1, S, S] with masks [B, h, h] to features [B, D, h, h]."""

    def __init__(self) -> None:
        super().__init__()
        # A linear layer from each patch to its token is a convolution that does not overlap.
        self.patch_embed = nn.ModuleDict({'proj': nn.Conv2d(1, EMBED_DIM, PATCH_SIZE, PATCH_SIZE)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, EMBED_DIM))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, EMBED_DIM))
        self.rel_pos_bias = RelativePositionBias()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(EMBED_DIM, eps=1e-6)
        # Weights start as normal numbers that are cut off at one standard deviation, biases at 0.
        layers = [m for m in self.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        for weight in [*(layer.weight for layer in layers), self.cls_token, self.mask_token]:
            nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)
        for bias in [layer.bias for layer in layers if layer.bias is not None]:
            nn.init.zeros_(bias)
        # proj and fc2 start smaller in deeper blocks (residual scaling), because what they return
        # is added to the sum of all that was returned before.
        for k, block in enumerate(self.blocks, start=1):
            block.attn.proj.weight.data /= math.sqrt(2 * k)
            block.mlp['fc2'].weight.data /= math.sqrt(2 * k)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        x = self.patch_embed['proj'](images).flatten(2).transpose(1, 2)  # [B, L, D]
        # The heart of SimMIM (section 3.2): one learnt vector, the mask token, replaces each hidden
        # patch, and all tokens go through the encoder, as a Swin needs the whole grid. In MAE
        # (arXiv:2111.06377) a ViT sees the visible tokens alone, which is faster.
        x = torch.where(masks.flatten(1).unsqueeze(2) == 1, self.mask_token, x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # [B, N, D]
        position_bias = self.rel_pos_bias()
        for block in self.blocks:
            x = block(x, position_bias)
        x = self.norm(x)[:, 1:]  # [B, L, D]: the class token has no pixels to predict
        return x.transpose(1, 2).unflatten(2, (GRID_SIZE, GRID_SIZE))


class SimMIM(nn.Module):
    """Predict the hidden pixels of images [B, 1, S, S], and return the error, one number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = VisionTransformerForSimMIM()
        # A linear layer is enough as head (section 3.3). It predicts all pixels of a patch from the
        # features of its token, and PixelShuffle puts them in their places. Fine-tuning drops it.
        linear = nn.Conv2d(EMBED_DIM, PATCH_SIZE**2, kernel_size=1)  # the same for all tokens
        self.decoder = nn.Sequential(linear, nn.PixelShuffle(PATCH_SIZE))

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        predictions = self.decoder(self.encoder(images, masks))  # [B, 1, S, S]
        hidden = F.interpolate(masks[:, None].float(), scale_factor=PATCH_SIZE)  # [B, 1, S, S]
        # Equation 1: the mean absolute error (L1) of the hidden pixels of the batch. The target is
        # the image as the network reads it, in one channel (SimMIM also divides by its three).
        # Visible pixels do not count, because the encoder has seen them.
        return ((predictions - images).abs() * hidden).sum() / (hidden.sum() + 1e-5)


# 3. Training ------------------------------------------------------------------------------------


def learning_rate(step: int, steps_per_epoch: int) -> float:
    """Return the learning rate that is set at the end of a step: linear warm-up, then a cosine."""
    warmup_steps, num_steps = WARMUP_EPOCHS * steps_per_epoch, EPOCHS * steps_per_epoch
    if step < warmup_steps:
        return WARMUP_LR + step * (BASE_LR - WARMUP_LR) / warmup_steps
    # The cosine starts at step 0 and not after the warm-up, so no rate quite reaches BASE_LR.
    return MIN_LR + (BASE_LR - MIN_LR) / 2 * (1 + math.cos(math.pi * step / num_steps))


def main(folder: Path) -> None:
    """Pre-train on the images of a folder, and save the weights."""
    dataset = XrayDataset(folder)
    torch.manual_seed(SEED)
    model = SimMIM()
    # Weight decay pulls weights towards 0, but neither vectors (biases, norms, factors) nor the
    # class token. The mask token decays in SimMIM's ViT, though not in its Swin.
    named = list(model.named_parameters())
    exempt = [p for name, p in named if p.ndim == 1 or name == 'encoder.cls_token']
    decayed = [p for name, p in named if p.ndim > 1 and name != 'encoder.cls_token']
    groups = [{'params': decayed}, {'params': exempt, 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
    for epoch in range(EPOCHS):
        dataset.epoch = epoch
        # The counter has a 1 where that of the images has a 0: other random numbers.
        rng = np.random.Generator(np.random.Philox(key=[SEED, epoch], counter=[0, 0, 1, 0]))
        order = rng.permutation(len(dataset.files)).tolist()
        loader = DataLoader(dataset, BATCH_SIZE, sampler=order, drop_last=True)
        losses = []
        for i, (images, masks) in enumerate(loader):
            # SimMIM sets the rate at the end of a step, for the next one. Step 0 has its own.
            step = epoch * len(loader) + i
            for group in optimizer.param_groups:
                group['lr'] = learning_rate(max(step - 1, 0), len(loader))
            loss = model(images, masks)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_GRAD)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        mean = sum(losses) / len(losses)
        print(f'epoch {epoch + 1} of {EPOCHS}: loss {mean:.4f}, {mean * STD:.1f} grey levels')
    torch.save({'model': model.state_dict()}, 'simmim_minimal.pth')


if __name__ == '__main__':
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / 'xrays')
