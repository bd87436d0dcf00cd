"""Mixup, CutMix, smoothing and policies of augmentation: against timm, and unknown targets."""

import random
from argparse import Namespace

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from same_runs import assert_same_weights, final_state, last_metrics
from tiny import ROOT, VIT, arguments, config_with, run_folder, run_main, tiny_config, torchrun
from torch.nn import functional as F

from config import get_config
from data.auto_augment import AutoAugment, posterize
from data.mixing import MIXERS, Mixup, mix_targets
from models.losses import masked_cross_entropy, smoothed

NAN, K, S = float('nan'), 5, 16
MIXES = {
    'mixup': {'MIXUP': 0.8, 'CUTMIX': 0.0},
    'cutmix': {'MIXUP': 0.0, 'CUTMIX': 1.0},
    'both': {'MIXUP': 0.8, 'CUTMIX': 1.0},
    'sides': {'MIXUP': 0.0, 'CUTMIX': 0.0, 'CUTMIX_MINMAX': [0.2, 0.8]},
    'sometimes': {'MIXUP': 0.8, 'CUTMIX': 1.0, 'MIXUP_PROB': 0.5, 'MIXUP_SWITCH_PROB': 0.3},
}
MODES = ('batch', 'pair', 'elem')
SIMMIMS = ('swin_base__100ep', 'swin_base__800ep', 'swin_large__800ep', 'vit_base__800ep')
NINE = sorted(path for name in SIMMIMS for path in (ROOT / 'configs' / name).glob('*.yaml'))
# Policies of timm: AutoAugment, RandAugment, AugMix, 3-Augment.
POLICIES = ('original', 'v0r', '3a', 'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2', 'augmix-m3-b1')


def options_of(mix: str, mode: str = 'batch', **more: object):
    return config_with(**{f'AUG__{k}': v for k, v in MIXES[mix].items()}, AUG__MIXUP_MODE=mode)


def images_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, S, S, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('mix', MIXES)
@pytest.mark.parametrize('exclusive', [True, False], ids=['classes', 'labels'])
def test_equals_timms_mixup_with_the_same_random_numbers(mix, mode, exclusive) -> None:
    aug, images = options_of(mix, mode).AUG, images_of(6)
    classes = torch.tensor([0, 1, 2, 3, 4, 0])
    targets = F.one_hot(classes, K).float()
    theirs = timm.data.Mixup(
        mixup_alpha=aug.MIXUP, cutmix_alpha=aug.CUTMIX, cutmix_minmax=aug.CUTMIX_MINMAX,
        prob=aug.MIXUP_PROB, switch_prob=aug.MIXUP_SWITCH_PROB, mode=mode, label_smoothing=0.1,
        num_classes=K, multi_label=not exclusive,
    )  # fmt: skip
    mixed = 0
    for seed in range(8):
        np.random.seed(int(np.random.default_rng(seed).integers(2**32)))
        want = theirs(images.clone(), classes if exclusive else targets)
        found = Mixup(aug)(images, targets, np.random.default_rng(seed))
        assert torch.equal(found[0], want[0])
        found_targets = smoothed(found[1], 0.1, exclusive=exclusive)
        torch.testing.assert_close(found_targets, want[1], rtol=0, atol=1e-6)
        mixed += not torch.equal(found[0], images)
    assert mixed > 2


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('mix', MIXES)
def test_a_target_that_is_unknown_in_either_image_is_unknown_in_the_mixture(mix, mode) -> None:
    """And only then: an image that is not mixed keeps its known targets."""
    images = images_of(8)
    targets = torch.rand(8, K, generator=torch.Generator().manual_seed(1))
    targets[torch.rand(8, K, generator=torch.Generator().manual_seed(2)) < 0.3] = NAN
    for seed in range(8):
        mixer = Mixup(options_of(mix, mode).AUG)
        found_images, found = mixer(images, targets, np.random.default_rng(seed))
        # The share of the image itself, from a target that marks it.
        marks = F.one_hot(torch.arange(8), 8).float()
        _, shares = mixer(images, marks, np.random.default_rng(seed))
        for i, k in np.ndindex(8, K):
            own, other = shares[i, i].item(), shares[i, 7 - i].item()
            assert own + other == pytest.approx(1)
            parts = [(own, targets[i, k].item()), (other, targets[7 - i, k].item())]
            want = sum(share * value for share, value in parts if share > 0)
            assert found[i, k].item() == pytest.approx(want, rel=1e-6, nan_ok=True)
            if own == 1:
                assert torch.equal(found_images[i], images[i])


def test_nothing_is_mixed_when_it_is_off_and_the_last_of_an_odd_batch_never() -> None:
    images, targets, mixer = images_of(5), torch.rand(5, K), Mixup(options_of('both').AUG)
    targets[4, 0] = NAN
    found = mixer(images, targets, np.random.default_rng(0))
    assert [*map(len, found)] == [5, 5] and not torch.equal(found[0], images)
    assert torch.equal(found[0][4], images[4])
    torch.testing.assert_close(found[1][4], targets[4], equal_nan=True)
    off = config_with(AUG__MIXUP=0, AUG__CUTMIX=0).AUG
    assert Mixup(off)(images, targets, None)[1] is targets
    assert torch.equal(mixer(images[:1], targets[:1], None)[0], images[:1])


@pytest.mark.parametrize('name', MIXERS)
def test_a_mixer_draws_from_the_given_numbers_alone_and_changes_no_input(name) -> None:
    images, targets = images_of(4), torch.rand(4, K)
    before = images.clone(), targets.clone()
    results = []
    for seed in range(2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        state = np.random.get_state()[1].copy(), torch.get_rng_state()
        mixer = MIXERS[name](options_of('both', 'elem').AUG)
        results.append(mixer(images, targets, np.random.default_rng(3)))
        assert np.array_equal(np.random.get_state()[1], state[0])
        assert torch.equal(torch.get_rng_state(), state[1])
    assert all(map(torch.equal, *results))
    assert torch.equal(images, before[0]) and torch.equal(targets, before[1])


def test_autocast_does_not_round_mixed_targets() -> None:
    shares = torch.tensor([[0.7001, 0.2999], [0.2999, 0.7001]])
    with torch.autocast('cpu', torch.bfloat16):
        found = mix_targets(torch.tensor([[1.0, 0.0], [0.0, NAN]]), shares)
    torch.testing.assert_close(found, torch.tensor([[0.7001, NAN], [0.2999, NAN]]), equal_nan=True)


def test_smoothed_classes_have_pytorchs_loss() -> None:
    logits, classes = torch.randn(7, K), torch.arange(7) % K
    targets = smoothed(F.one_hot(classes, K).float(), 0.2, exclusive=True)
    found = masked_cross_entropy(logits, targets)
    torch.testing.assert_close(found, F.cross_entropy(logits, classes, label_smoothing=0.2))
    labels = smoothed(torch.tensor([[0.0, 1.0, NAN]]), 0.2, exclusive=False)
    torch.testing.assert_close(labels, torch.tensor([[0.1, 0.9, NAN]]), equal_nan=True)


@pytest.mark.parametrize('policy', POLICIES)
def test_a_policy_of_timm_changes_grey_images_by_the_generator_of_the_sample(policy) -> None:
    config = config_with(AUG__AUTO_AUGMENT=policy, DATA__IMG_SIZE=32, MODEL__IN_CHANS=1)
    augment = AutoAugment(config)
    pixels = np.random.default_rng(0).uniform(0, 255, (32, 32)).astype(np.float32)
    changed = 0
    for seed in range(60):
        random.seed(seed)
        np.random.seed(seed)
        states = random.getstate(), np.random.get_state()[1].copy()
        found = augment(pixels, np.random.default_rng(seed))
        assert random.getstate() == states[0]
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert found.shape == (32, 32) and found.dtype == np.float32
        assert 0 <= found.min() <= found.max() <= 255
        random.seed(seed + 1)
        assert np.array_equal(augment(pixels, np.random.default_rng(seed)), found)
        changed += not np.array_equal(found, np.rint(pixels))
    assert changed > 20


def test_a_policy_is_that_of_timms_transform() -> None:
    """With its settings for an image of one channel, and the same random numbers."""
    config = config_with(DATA__IMG_SIZE=32, MODEL__IN_CHANS=1)
    size_and_fill = {'translate_const': 14, 'img_mean': 128}  # 0.45 x 32, and 0.503 x 255
    theirs = timm.data.auto_augment.rand_augment_transform(
        'rand-m9-mstd0.5-inc1', size_and_fill | {'interpolation': Image.Resampling.BICUBIC}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    for operation in theirs.ops:
        if operation.name == 'PosterizeIncreasing':
            image = Image.fromarray(pixels)
            assert all(operation.aug_fn(image, k) == posterize(image, k) for k in range(1, 9))
            operation.aug_fn = posterize  # recent versions of Pillow refuse 0 bits
    for seed in range(20):
        rng = np.random.default_rng(seed)
        random.seed(int(rng.integers(2**63)))
        np.random.seed(int(rng.integers(2**32)))
        want = np.asarray(theirs(Image.fromarray(pixels)), np.float32)
        found = AutoAugment(config)(pixels.astype(np.float32), np.random.default_rng(seed))
        np.testing.assert_array_equal(found, want)


MIXED = {
    'AUG': {'MIXUP': 0.8, 'CUTMIX': 1.0, 'MIXUP_MODE': 'elem', 'AUTO_AUGMENT': 'rand-m9-inc1'},
    'TRAIN': {'SAVE_EVERY_STEPS': 1},
}


@pytest.mark.parametrize('processes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_mixes_resumes_bit_for_bit(processes, phantom, tmp_path) -> None:
    """With Mixup, CutMix, smoothing, a policy, accumulation and unknown targets."""
    model = VIT | {'LABEL_SMOOTHING': 0.1}
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT, MODEL=model, **MIXED)
    whole, resumed = (run_folder(tmp_path / name, 'finetune') for name in ('whole', 'resumed'))
    begun = ['--resume', str(whole / 'ckpt_epoch_1_step_2.pth')]
    for folder, more in ((whole, []), (resumed, begun)):
        argv = arguments(cfg, phantom, folder.parents[1], *more)
        argv += ['--batch-size', str(4 // processes)]
        if processes == 1:
            assert run_main('finetune', argv) == 0
        else:
            done = torchrun('finetune', argv, processes)
            assert done.returncode == 0, done.stdout + done.stderr
    assert_same_weights(final_state(resumed), final_state(whole))
    assert last_metrics(resumed) == last_metrics(whole)


@pytest.mark.parametrize('path', NINE, ids=lambda path: path.stem)
def test_simmims_files_are_accepted_for_chexpert_and_for_classes(path) -> None:
    assert len(NINE) == 9
    stage = 'simmim' if 'pretrain' in path.stem else 'finetune'
    chexpert = ['DATA.DATASET', 'chexpert', 'DATA.DATA_PATH', 'x']
    classes = ['DATA.TASK', 'single_label', 'DATA.LABELS', "['a', 'b', 'c']"]
    for more, outputs, loss in (([], 14, 'bce'), (classes, 3, 'cross_entropy')):
        config = get_config(Namespace(cfg=str(path), stage=stage, opts=chexpert + more))
        assert config.AUG.MIXUP == 0.8 and config.MODEL.LABEL_SMOOTHING == 0.1
        if stage == 'finetune':
            assert (config.MODEL.NUM_CLASSES, config.LOSS.NAME) == (outputs, loss)
