"""Models against the numbers recorded from SimMIM."""

import numpy as np
import pytest
import torch
from golden_cases import assert_close, case_config, case_id, cases, fill, recorded
from torch import nn

from models import build_model
from models.encoder import ENCODERS

SIMMIM_KINDS = ('swin_simmim', 'vit_simmim')
CLASSIFIER_KINDS = ('swin_cls', 'vit_cls')


def all_cases(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize('case', cases(*kinds), ids=case_id)


def limits_on(device: torch.device, **limits: float) -> dict[str, float]:
    return limits if device.type == 'cpu' else {k: max(v, 1e-4) for k, v in limits.items()}


def filled_model(case: dict, device: torch.device, *, is_pretrain: bool) -> nn.Module:
    model = build_model(case_config(case), is_pretrain=is_pretrain).eval()
    inputs = case['inputs']
    fill.fill_model(model, inputs['weights_seed'], inputs.get('weights_scale', 1.0))
    return model.to(device)


def encoder_options(case: dict) -> dict:
    config = case_config(case)
    return ENCODERS[config.MODEL.TYPE].constructor_arguments(config)


def case_images(case: dict) -> torch.Tensor:
    options, inputs = encoder_options(case), case['inputs']
    shape = inputs['batch'], options['in_chans'], options['img_size']
    return torch.from_numpy(fill.images(inputs['image_seed'], *shape))


def case_mask(case: dict) -> torch.Tensor:
    options, inputs = encoder_options(case), case['inputs']
    sizes = options['img_size'], inputs['mask_patch'], options['patch_size']
    masks = fill.masks(inputs['mask_seed'], inputs['batch'], *sizes, inputs['mask_ratio'])
    return torch.from_numpy(masks)


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {
        key: list(tensor.shape)
        for key, tensor in model.state_dict().items()
        if not fill.is_buffer(key)
    }


@all_cases(*SIMMIM_KINDS)
def test_pretraining_model_gives_recorded_features_and_loss(case, device) -> None:
    values, arrays = recorded(case)
    limits = limits_on(device, **{key: case['tolerance'][key] for key in ('rtol', 'atol')})
    model = filled_model(case, device, is_pretrain=True)
    x, mask = case_images(case).to(device), case_mask(case).to(device)
    assert shapes(model) == values['shapes']
    with torch.no_grad():
        features, reconstruction = model.encoder(x, mask), model.reconstruct(x, mask)
        loss = model(x, mask)
    assert loss.shape == ()
    assert_close(features.cpu(), arrays['features'], **limits, what='features')
    assert_close(reconstruction.cpu(), arrays['reconstruction'], **limits, what='reconstruction')
    assert_close(loss.cpu(), values['loss'], **limits, what='loss')


@all_cases(*SIMMIM_KINDS)
def test_pretraining_model_gives_recorded_gradients(case: dict, device: torch.device) -> None:
    values, _ = recorded(case)
    limits = {'rtol': 5 * case['tolerance']['rtol'], 'atol': case['tolerance']['grad_atol']}
    limits = limits_on(device, **limits)
    model = filled_model(case, device, is_pretrain=True)
    model(case_images(case).to(device), case_mask(case).to(device)).backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    assert gradients.keys() == values['gradients'].keys()
    for name, want in values['gradients'].items():
        got = gradients[name]
        assert_close(got.flatten()[:8], want['first8'], **limits, what=f'gradient {name}')
        assert_close(got.norm(), want['norm'], **limits, what=f'gradient-norm {name}')


@all_cases(*CLASSIFIER_KINDS)
def test_classifier_gives_recorded_logits(case: dict, device: torch.device) -> None:
    values, arrays = recorded(case)
    model = filled_model(case, device, is_pretrain=False)
    assert shapes(model) == values['shapes']
    with torch.no_grad():
        logits = model(case_images(case).to(device)).cpu()
    limits = limits_on(device, **case['tolerance'])
    assert_close(logits, arrays['logits'], **limits, what='logits')


def pooled_values(case: dict) -> dict[str, np.ndarray]:
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
def test_stochastic_depth_grows_as_recorded(case: dict) -> None:
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
    assert_close(got, want, **case['tolerance'], what='rate')


@all_cases('full_keys')
def test_full_size_state_dict_has_recorded_keys_in_order(case: dict) -> None:
    want, _ = recorded(case)
    with torch.device('meta'):
        model = build_model(case_config(case), is_pretrain=case['inputs']['is_pretrain'])
    got = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert list(got.items()) == list(want.items())


def test_no_case_is_left_out() -> None:
    count = {'swin_simmim': 7, 'vit_simmim': 6, 'swin_cls': 2, 'vit_cls': 3, 'init': 4}
    count |= {'drop_path': 3, 'full_keys': 7}
    assert {kind: len(cases(kind)) for kind in count} == count
