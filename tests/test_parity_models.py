"""Models against the numbers recorded from SimMIM.

`pytest tests/test_parity_models.py -s` prints the largest error of each kind and quantity.
"""

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from golden_cases import assert_close, case_config, case_id, cases, fill, recorded
from torch import nn

from config import default_config
from models import build_model
from models.encoder import ENCODERS

SIMMIM_KINDS = ('swin_simmim', 'vit_simmim')
CLASSIFIER_KINDS = ('swin_cls', 'vit_cls')


def all_cases(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize('case', cases(*kinds), ids=case_id)


class Worst:
    """Compare arrays, and record the largest error of each kind and quantity."""

    def __init__(self) -> None:
        self.errors: dict[tuple[str, str], tuple[float, float]] = {}

    def close(self, case: dict, quantity: str, got: object, want: object, **limits: float) -> None:
        """Check one array with limits (rtol, atol)."""
        assert_close(got, want, what=f'{case["name"]} {quantity}', **limits)
        error = np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64))
        allowed = limits['atol'] + limits['rtol'] * np.abs(np.asarray(want, np.float64))
        key = (case['kind'], quantity.split()[0])
        before = self.errors.get(key, (0.0, 0.0))
        self.errors[key] = (
            max(before[0], error.max()),
            max(before[1], (error / allowed).max()),
        )

    def report(self) -> str:
        return '\n'.join(
            f'{kind} {quantity}: worst error {error:.3g}, {share:.3g} of the tolerance'
            for (kind, quantity), (error, share) in self.errors.items()
        )


@pytest.fixture(scope='module')
def worst() -> Iterator[Worst]:
    worst = Worst()
    yield worst
    sys.stdout.write(f'\n{worst.report()}\n')


def limits_on(device: torch.device, **limits: float) -> dict[str, float]:
    """Return the tolerances of a case, which are larger on a GPU."""
    return limits if device.type == 'cpu' else {k: max(v, 1e-4) for k, v in limits.items()}


def filled_model(case: dict, device: torch.device, *, is_pretrain: bool) -> nn.Module:
    model = build_model(case_config(case), is_pretrain=is_pretrain).eval()
    inputs = case['inputs']
    fill.fill_model(model, inputs['weights_seed'], inputs.get('weights_scale', 1.0))
    return model.to(device)


def case_images(case: dict) -> torch.Tensor:
    options, inputs = (
        ENCODERS[case_config(case).MODEL.TYPE].constructor_arguments(case_config(case)),
        case['inputs'],
    )
    return torch.from_numpy(
        fill.images(inputs['image_seed'], inputs['batch'], options['in_chans'], options['img_size'])
    )


def case_mask(case: dict) -> torch.Tensor:
    options, inputs = (
        ENCODERS[case_config(case).MODEL.TYPE].constructor_arguments(case_config(case)),
        case['inputs'],
    )
    return torch.from_numpy(
        fill.masks(
            inputs['mask_seed'],
            inputs['batch'],
            options['img_size'],
            inputs['mask_patch'],
            options['patch_size'],
            inputs['mask_ratio'],
        )
    )


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {
        key: list(tensor.shape)
        for key, tensor in model.state_dict().items()
        if not fill.is_buffer(key)
    }


@all_cases(*SIMMIM_KINDS)
def test_pretraining_model_gives_recorded_features_and_loss(
    case: dict, worst: Worst, device: torch.device
) -> None:
    values, arrays = recorded(case)
    limits = limits_on(device, **{key: case['tolerance'][key] for key in ('rtol', 'atol')})
    model = filled_model(case, device, is_pretrain=True)
    x, mask = case_images(case).to(device), case_mask(case).to(device)
    assert shapes(model) == values['shapes']
    with torch.no_grad():
        features, reconstruction = model.encoder(x, mask), model.reconstruct(x, mask)
        loss = model(x, mask)
    assert loss.shape == ()
    worst.close(case, 'features', features.cpu(), arrays['features'], **limits)
    worst.close(case, 'reconstruction', reconstruction.cpu(), arrays['reconstruction'], **limits)
    worst.close(case, 'loss', loss.cpu(), values['loss'], **limits)


@all_cases(*SIMMIM_KINDS)
def test_pretraining_model_gives_recorded_gradients(
    case: dict, worst: Worst, device: torch.device
) -> None:
    values, _ = recorded(case)
    limits = {'rtol': 5 * case['tolerance']['rtol'], 'atol': case['tolerance']['grad_atol']}
    limits = limits_on(device, **limits)
    model = filled_model(case, device, is_pretrain=True)
    model(case_images(case).to(device), case_mask(case).to(device)).backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    assert gradients.keys() == values['gradients'].keys()
    for name, want in values['gradients'].items():
        got = gradients[name]
        worst.close(case, f'gradient {name}', got.flatten()[:8], want['first8'], **limits)
        worst.close(case, f'gradient-norm {name}', got.norm(), want['norm'], **limits)


@all_cases(*CLASSIFIER_KINDS)
def test_classifier_gives_recorded_logits(case: dict, worst: Worst, device: torch.device) -> None:
    values, arrays = recorded(case)
    model = filled_model(case, device, is_pretrain=False)
    assert shapes(model) == values['shapes']
    with torch.no_grad():
        logits = model(case_images(case).to(device)).cpu()
    limits = limits_on(device, **case['tolerance'])
    worst.close(case, 'logits', logits, arrays['logits'], **limits)


def pooled_values(case: dict) -> dict[str, np.ndarray]:
    """Pool the initial values of each parameter over several models."""
    inputs, pools = case['inputs'], {}
    for repeat in range(inputs['check_repeats']):
        torch.manual_seed(inputs['seed'] + repeat)
        model = build_model(case_config(case), is_pretrain=inputs['is_pretrain'])
        for name, parameter in model.named_parameters():
            pools.setdefault(name, []).append(parameter.detach().double().numpy().ravel())
    return {name: np.concatenate(arrays) for name, arrays in pools.items()}


def check_distribution(name: str, values: np.ndarray, want: dict, tolerance: dict) -> None:
    """Check that mean and spread agree within sampling error, and that bounds hold."""
    if 'constant' in want:
        np.testing.assert_allclose(values, want['constant'], rtol=1e-6, err_msg=name)
        return
    per_sample = 1 / len(values) + 1 / want['n']
    mean_limit = tolerance['sigmas'] * want['std'] * np.sqrt(per_sample)
    std_error = want['std'] * np.sqrt((want['kurtosis'] - 1) / 4 * per_sample)
    std_limit = tolerance['sigmas'] * std_error + tolerance['std_rtol'] * want['std']
    assert abs(values.mean() - want['mean']) <= mean_limit, name
    assert abs(values.std() - want['std']) <= std_limit, name
    kurtosis = ((values - values.mean()) ** 4).mean() / values.std() ** 4
    assert (kurtosis < 2.2) == (want['kurtosis'] < 2.2), f'{name}: kurtosis {kurtosis}'
    limit = 1.01 if want['kurtosis'] < 2.2 else 2
    assert np.abs(values).max() <= limit * want['absmax'], name


@all_cases('init')
def test_fresh_models_have_recorded_statistics(case: dict) -> None:
    want, _ = recorded(case)
    pools = pooled_values(case)
    assert pools.keys() == want.keys()
    for name, values in pools.items():
        check_distribution(name, values, want[name], case['tolerance'])


@all_cases('drop_path')
def test_stochastic_depth_grows_as_recorded(case: dict, worst: Worst) -> None:
    values, _ = recorded(case)
    model = build_model(case_config(case), is_pretrain=case['inputs']['is_pretrain'])
    rates = [
        (name, getattr(block.drop_path, 'drop_prob', 0.0))
        for name, block in model.named_modules()
        if hasattr(block, 'drop_path')
    ]
    names, got = zip(*rates, strict=True)
    recorded_names, want = zip(*values['rates'], strict=True)
    assert names == recorded_names
    worst.close(case, 'rate', got, want, **case['tolerance'])


@all_cases('full_keys')
def test_full_size_state_dict_has_recorded_keys_in_order(case: dict) -> None:
    want, _ = recorded(case)
    with torch.device('meta'):
        model = build_model(case_config(case), is_pretrain=case['inputs']['is_pretrain'])
    got = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert list(got.items()) == list(want.items())


def test_no_case_is_left_out() -> None:
    """The recorded set contains all cases of every kind in this file."""
    count = {'swin_simmim': 7, 'vit_simmim': 6, 'swin_cls': 2, 'vit_cls': 3, 'init': 4}
    count |= {'drop_path': 3, 'full_keys': 7}
    assert {kind: len(cases(kind)) for kind in count} == count


SWIN_BASE = {'TYPE': 'swin', 'SWIN.EMBED_DIM': 128, 'SWIN.NUM_HEADS': [4, 8, 16, 32]}
SWIN_LARGE = {'TYPE': 'swin', 'SWIN.EMBED_DIM': 192, 'SWIN.NUM_HEADS': [6, 12, 24, 48]}
VIT_FINETUNE = {
    'TYPE': 'vit',
    'VIT.USE_RPB': True,
    'VIT.USE_SHARED_RPB': False,
    'VIT.USE_MEAN_POOLING': True,
}


@pytest.mark.parametrize(
    'options, size, window, is_pretrain, parameters, tensors, entries',
    [
        (SWIN_BASE, 192, 6, True, 89_874_104, 330, 365),
        (SWIN_LARGE, 192, 12, True, 199_881_204, 330, 356),
        ({'TYPE': 'vit'}, 224, 7, True, 86_256_720, 189, 190),
        (SWIN_BASE, 192, 6, False, 87_750_176, 329, 364),
        (SWIN_BASE, 224, 7, False, 87_768_224, 329, 364),
        (SWIN_LARGE, 224, 14, False, 196_794_556, 329, 355),
        (VIT_FINETUNE, 224, 7, False, 86_530_984, 199, 211),
    ],
)
def test_published_models_have_their_parameter_counts(
    options: dict,
    size: int,
    window: int,
    is_pretrain: bool,
    parameters: int,
    tensors: int,
    entries: int,
) -> None:
    config = default_config()
    common = {'SWIN.DEPTHS': [2, 2, 18, 2], 'SWIN.WINDOW_SIZE': window, 'NUM_CLASSES': 1000}
    common |= {'IN_CHANS': 3}
    for key, value in (common | options).items():
        config.merge_from_list([f'MODEL.{key}', value])
    config.DATA.IMG_SIZE = size
    with torch.device('meta'):
        model = build_model(config, is_pretrain=is_pretrain)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(list(model.parameters())) == tensors
    assert len(model.state_dict()) == entries
