r"""SimMIM with a Swin Transformer in one file. First read simmim_minimal.py, which has a ViT.

    python examples/simmim_minimal_swin.py [DIR]

The encoder, the options and the rule for weight decay differ, and lateral images are used, too. The
command trains for about two minutes on two CPU cores, and fine-tuning starts from what it saves:

    python main_finetune.py --data-path DIR --pretrained simmim_minimal_swin.pth \
        --cfg configs/swin_nano__demo/simmim_finetune__swin_nano__img64_window4__demo.yaml

tests/parity/test_simmim_minimal.py keeps this file equal to the program, bit for bit, in float32:

    python main_simmim.py --data-path DIR --amp-opt-level O0 \
        --cfg configs/swin_nano__demo/simmim_pretrain__swin_nano__img64_window4__demo.yaml

Letters in shapes: B images in a batch, S pixels along a side of an image, h tokens along a side in
a stage (at first patches), N tokens of a window, D features of a token, H heads.
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

# The options have SimMIM's names. In brackets: the values of SimMIM's Swin-B for ImageNet.
IMG_SIZE = 64  # S (192)
PATCH_SIZE = 4  # side of a patch in pixels (4)
GRID_SIZE = IMG_SIZE // PATCH_SIZE  # h of the first stage (48)
MASK_PATCH_SIZE = 8  # side in pixels of the squares that are hidden or visible as a whole (32)
MASK_RATIO = 0.6  # share of the squares that are hidden, rounded up: 39 of 64 (0.6)
DEPTHS = (2, 2, 2, 2)  # number of blocks in each stage (2, 2, 18, 2)
NUM_HEADS = (2, 4, 8, 16)  # H in each stage (4, 8, 16, 32)
EMBED_DIM = 32  # D of the first stage, which doubles from stage to stage (128)
NUM_FEATURES = EMBED_DIM * 2 ** (len(DEPTHS) - 1)  # D of the last stage (1024)
STRIDE = PATCH_SIZE * 2 ** (len(DEPTHS) - 1)  # side in pixels of a token of the last stage (32)
WINDOW_SIZE = 4  # side of a window in tokens (6)
BATCH_SIZE = 16  # B (2048)
EPOCHS, WARMUP_EPOCHS = 20, 2  # (100, 10)
# SimMIM states learning rates per 512 images, and scales them with the batch size.
WARMUP_LR = 1.6e-5 * (BATCH_SIZE / 512)  # where the warm-up starts (1e-6)
BASE_LR = 0.024 * (BATCH_SIZE / 512)  # where it ends (2e-4)
MIN_LR = 1.6e-4 * (BATCH_SIZE / 512)  # where the training ends (1e-5)
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
        self.files = files[~is_held_out]
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


# 2. A Swin Transformer (arXiv:2103.14030), head and loss -----------------------------------------


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut a grid into square windows of N tokens: [B, h, h, D] -> [B, windows, N, D]."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # [B, rows, window, columns, ...]
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def to_grid(x: Tensor, window: int) -> Tensor:
    """Join windows to a grid: [B, windows, N, D] -> [B, h, h, D]."""
    count = math.isqrt(x.shape[1])  # windows along a side
    x = x.unflatten(2, (window, window)).unflatten(1, (count, count))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class WindowAttention(nn.Module):
    """Mix tokens [B, h, h, D] within windows: softmax(q k^T / sqrt(D / H) + bias) v per head."""

    def __init__(self, width: int, num_heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        # Numbers that are added to the logits, learnt for each distance of two tokens, down and to
        # the right. Nothing else tells the encoder where a token is. Distances are -(window - 1) to
        # window - 1, here counted from 0.
        token, num_distances = torch.arange(window**2), 2 * window - 1
        row, column = token // window, token % window
        down = row[:, None] - row + window - 1  # [N, N]
        right = column[:, None] - column + window - 1
        self.register_buffer('relative_position_index', num_distances * down + right)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_distances**2, num_heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        # Shifted windows are the windows of a grid that is rolled up and to the left.
        x = to_windows(x.roll((-self.shift, -self.shift), dims=(1, 2)), self.window)
        qkv = self.qkv(x).unflatten(3, (3, self.num_heads, -1))  # [B, windows, N, 3, H, D / H]
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each [B, windows, H, N, D / H]
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]  # [windows, H, N, N]
        q = q * q.shape[-1] ** -0.5
        logits = q @ k.transpose(3, 4) + bias  # [B, windows, H, N, N]
        x = (logits.softmax(dim=4) @ v).transpose(2, 3).flatten(3)  # [B, windows, N, D]
        return self.proj(to_grid(x, self.window).roll((self.shift, self.shift), dims=(1, 2)))


class Block(nn.Module):
    """Mix tokens [B, h, h, D] within windows, then change each token by itself."""

    def __init__(self, width: int, num_heads: int, side: int, is_shifted: bool) -> None:
        super().__init__()
        window = min(WINDOW_SIZE, side)
        shift = window // 2 if is_shifted and window < side else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, num_heads, window, shift)
        self.norm2 = nn.LayerNorm(width)
        fc1, fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.ModuleDict({'fc1': fc1, 'fc2': fc2})
        # The roll brings opposite edges of the image into one window. Tokens from different edges
        # must not see each other: adding -100 to a logit makes the attention vanish.
        mask = None
        if shift:
            band = torch.zeros(side)  # 0, 1 or 2 for the parts of a side that were not separated
            band[-window:] += 1
            band[-shift:] += 1
            part = to_windows((3 * band[:, None] + band).view(1, side, side, 1), window).squeeze()
            mask = torch.where(part[:, :, None] == part[:, None, :], 0.0, -100.0)  # [windows, N, N]
        self.register_buffer('attn_mask', mask)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.attn_mask)
        return x + self.mlp['fc2'](F.gelu(self.mlp['fc1'](self.norm2(x))))


class PatchMerging(nn.Module):
    """Merge 2 x 2 tokens to one of twice the width: [B, h, h, D] -> [B, h / 2, h / 2, 2 D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        # In the order of Swin's code: top left, bottom left, top right, bottom right.
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, dim=3)))


class Stage(nn.Module):
    """Blocks at one resolution, of which every second has shifted windows, then a merge."""

    def __init__(self, number: int) -> None:
        super().__init__()
        width, side = EMBED_DIM * 2**number, GRID_SIZE // 2**number
        self.blocks = nn.Sequential(
            *(Block(width, NUM_HEADS[number], side, k % 2 == 1) for k in range(DEPTHS[number]))
        )
        is_last = number == len(DEPTHS) - 1
        self.downsample = nn.Identity() if is_last else PatchMerging(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class SwinTransformerForSimMIM(nn.Module):
    """Encode images [B, 1, S, S] with masks [B, h, h] to features [B, D, S / 32, S / 32]."""

    def __init__(self) -> None:
        super().__init__()
        # A linear layer from each patch to its token is a convolution that does not overlap.
        proj, norm = nn.Conv2d(1, EMBED_DIM, PATCH_SIZE, PATCH_SIZE), nn.LayerNorm(EMBED_DIM)
        self.patch_embed = nn.ModuleDict({'proj': proj, 'norm': norm})
        self.layers = nn.Sequential(*(Stage(number) for number in range(len(DEPTHS))))
        self.norm = nn.LayerNorm(NUM_FEATURES)
        # Weights start as normal numbers, biases at 0.
        for module in self.modules():
            if isinstance(module, WindowAttention):
                nn.init.normal_(module.relative_position_bias_table, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, EMBED_DIM))

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        x = self.patch_embed['proj'](images).permute(0, 2, 3, 1)  # [B, h, h, D]
        x = self.patch_embed['norm'](x)
        # The heart of SimMIM (section 3.2): one learnt vector, the mask token, replaces each hidden
        # patch. The grid stays whole, which windows need. MAE leaves hidden patches out.
        x = torch.where(masks.unsqueeze(3) == 1, self.mask_token, x)
        return self.norm(self.layers(x)).permute(0, 3, 1, 2)


class SimMIM(nn.Module):
    """Predict the hidden pixels of images [B, 1, S, S], and return the error, one number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SwinTransformerForSimMIM()
        # A linear layer is enough as head (section 3.3). It predicts all pixels that a
        # token of the last stage covers, and PixelShuffle puts them in their places. Fine-tuning
        # drops it.
        linear = nn.Conv2d(NUM_FEATURES, STRIDE**2, kernel_size=1)  # the same for all tokens
        self.decoder = nn.Sequential(linear, nn.PixelShuffle(STRIDE))

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
    # Weight decay pulls weights towards 0, but neither vectors (biases, norms) nor the mask token,
    # which does decay in SimMIM's ViT. The tables of positions decay, though not in fine-tuning.
    named = list(model.named_parameters())
    exempt = [p for name, p in named if p.ndim == 1 or name == 'encoder.mask_token']
    decayed = [p for name, p in named if p.ndim > 1 and name != 'encoder.mask_token']
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
    torch.save({'model': model.state_dict()}, 'simmim_minimal_swin.pth')


if __name__ == '__main__':
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / 'xrays')
