"""The cases of a device and a model, and steps that are the engine's own or the published ones."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import SWIN, VIT, tiny_config

from config import default_config
from data import build_loader
from models.swin_transformer import SwinTransformerBlock
from speed.cases import Case, Published, list_cases
from speed.steps import Setting, build_steps, synthetic_batch
from training_step import train_one_batch

CPU, GPU = torch.device('cpu'), torch.device('cuda')


@pytest.fixture
def setting(tmp_path):
    def make(stage='pretrain', model=SWIN, opts=(), **sections) -> Setting:
        main = {'pretrain': 'simmim', 'finetune': 'finetune'}[stage]
        model = model | {'DROP_PATH_RATE': 0.0}
        cfg = tiny_config(tmp_path / f'{stage}.yaml', main, model, **sections)
        return Setting(str(cfg), stage, opts, 2, CPU)

    return make


# Which cases there are


@pytest.fixture
def gpu(monkeypatch):
    def have(name: str, *, bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda *_: name)
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **_: bfloat16)

    return have


def config_of(model: str, **options: str):
    config = default_config()
    config.MODEL.TYPE = model
    config.merge_from_list([word for pair in options.items() for word in pair])
    return config


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


def test_levers_go_one_after_another_each_on_top_of_those_before(gpu):
    gpu('NVIDIA H200', bfloat16=True)
    cases, notes = list_cases(config_of('swin'), GPU, baseline=False, levers=True)
    none = {'TRAIN.COMPILE': 'none'}
    assert cases == [
        Case('published', Published(torch.float16, waits=True, fused=False)),
        Case('bfloat16 for float16', Published(torch.bfloat16, waits=True, fused=False)),
        Case('no wait per step', Published(torch.bfloat16, waits=False, fused=False)),
        Case('fused AdamW', Published(torch.bfloat16, waits=False, fused=True)),
        Case('our code, eager', options={'MODEL.ATTENTION': 'eager'} | none),
        Case('attention sdpa', options={'MODEL.ATTENTION': 'sdpa'} | none),
        Case('attention triton', options={'MODEL.ATTENTION': 'triton'} | none),
        Case('compile auto', options={'TRAIN.COMPILE': 'auto'}),
        Case('compile max', options={'TRAIN.COMPILE': 'max'}),
    ]
    assert notes == []


@pytest.mark.parametrize('levers', [False, True])
def test_with_data_comes_last(levers):
    cases, _ = list_cases(config_of('vit'), CPU, baseline=False, levers=levers, data=True)
    assert cases[-1] == Case('ours, with data', reads_data=True)
    assert names(cases)[:-1] == names(
        list_cases(config_of('vit'), CPU, baseline=False, levers=levers)[0]
    )


def test_steps_with_data_take_the_loaders_batches_epoch_after_epoch(setting, phantom):
    made = replace(setting(DATA={'TRAIN_IMAGES': 5}), data_path=str(phantom))
    steps = build_steps(made, Case('ours, with data', reads_data=True))
    loader = build_loader(steps.run.config, steps.run.logger, is_pretrain=True).train
    wanted = []
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch, first_batch=0)
        wanted += list(loader)
    assert len(wanted) == 3 * 2
    for batch in wanted:
        got = next(steps.batches)
        assert all(map(torch.equal, got, batch))
    steps()
    assert steps.loss.isfinite()


def test_what_a_device_lacks_is_said_and_left_out(gpu):
    gpu('Tesla T4', bfloat16=False)
    cases, notes = list_cases(config_of('vit'), GPU, baseline=True, levers=True)
    where = 'not applicable on Tesla T4 with MODEL.TYPE vit, AMP_OPT_LEVEL O1'
    assert notes == [f'bfloat16 for float16: {where}', f'attention triton: {where}']
    assert cases[2] == Case('fused AdamW', Published(torch.float16, waits=False, fused=True))
    assert names(cases) == [
        'published', 'no wait per step', 'fused AdamW', 'our code, eager', 'attention sdpa',
        'compile auto', 'compile max',
    ]  # fmt: skip


def test_on_the_cpu_the_published_way_is_in_float32(capsys):
    cases, notes = list_cases(config_of('swin'), CPU, baseline=True, levers=True)
    assert names(cases) == [
        'published', 'fused AdamW', 'our code, eager', 'attention sdpa', 'compile max'
    ]  # fmt: skip
    assert cases[0].published.dtype is None
    assert notes == [
        'published: in float32, since the published code itself needs a GPU',
        *(
            f'{name}: not applicable on the CPU'
            for name in ('bfloat16 for float16', 'no wait per step', 'attention triton')
        ),
        'compile auto: not applicable on the CPU',
    ]


@pytest.mark.parametrize('baseline', [True, False])
def test_without_levers_ours_is_as_the_config_says(baseline, gpu):
    gpu('NVIDIA H200', bfloat16=True)
    cases, notes = list_cases(config_of('vit'), GPU, baseline=baseline, levers=False)
    assert names(cases) == ['published'] * baseline + ['ours'] and not notes
    assert cases[-1] == Case('ours')


def test_float32_is_compared_with_float32(gpu):
    gpu('NVIDIA H200', bfloat16=True)
    config = config_of('swin', AMP_OPT_LEVEL='O0')
    cases, notes = list_cases(config, GPU, baseline=True, levers=True)
    assert cases[0].published == Published(None)
    assert 'bfloat16 for float16' not in names(cases) and len(notes) == 1


def test_there_is_no_published_way_with_another_optimizer():
    config = config_of('swin', **{'TRAIN.OPTIMIZER.NAME': 'sgd'})
    list_cases(config, CPU, baseline=False, levers=False)
    for wanted in ({'baseline': True, 'levers': False}, {'baseline': False, 'levers': True}):
        with pytest.raises(ValueError, match="TRAIN.OPTIMIZER.NAME must be 'adamw'.*'sgd'"):
            list_cases(config, CPU, **wanted)


# Steps


@pytest.mark.parametrize('model', [SWIN, VIT], ids=['swin', 'vit'])
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_published_and_own_steps_train_alike(stage, model, setting):
    """Same weights, batch, rates and decay: after three steps the weights are the same."""
    train = {'WARMUP_EPOCHS': 0, 'BASE_LR': 0.5, 'LAYER_DECAY': 0.7, 'CLIP_GRAD': 0.1}
    train |= {'OPTIMIZER': {'EPS': 1e-3}}  # noise does not move what has no gradient
    chosen = setting(stage, model, TRAIN=train)
    own = build_steps(chosen, Case('ours'))
    published = build_steps(chosen, Case('published', Published(None)))
    start = copy.deepcopy(own.state.module.state_dict())
    losses = []
    for steps in (own, published):
        for _ in range(3):
            steps()
        losses.append(steps.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    moved = 0.0
    for (name, a), b in zip(
        own.state.module.named_parameters(), published.model.parameters(), strict=True
    ):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=name)
        moved = max(moved, (a - start[name]).abs().max().item())
    assert moved > 1e-3
    rates = [[group['lr'] for group in each.param_groups]
             for each in (own.state.optimizer, published.optimizer)]  # fmt: skip
    assert rates[0] == rates[1]


def test_own_steps_are_the_engines(setting, monkeypatch):
    calls = []

    def spy(run, state, batch, loss_fn, i):
        calls.append(i)
        return train_one_batch(run, state, batch, loss_fn, i)

    monkeypatch.setattr('speed.steps.train_one_batch', spy)
    steps = build_steps(setting(), Case('ours'))
    steps(), steps()
    assert calls == [0, 1] and steps.loss.isfinite()
    assert steps.state.accumulation == 1  # though the config has 2: each batch makes a step
    assert steps.state.model.training


def test_options_of_a_case_are_those_that_run(setting):
    options = {'MODEL.ATTENTION': 'sdpa', 'TRAIN.COMPILE': 'none'}
    steps = build_steps(setting(opts=['MODEL.ATTENTION', 'eager']), Case('x', options=options))
    found = steps.describe()
    assert (found['code'], found['precision'], found['attention']) == ('ours', 'float32', 'sdpa')
    assert found['compile'] == 'none' and found['compiled'] is False
    assert {m.attention for m in steps.state.module.modules() if hasattr(m, 'attention')} == {
        'sdpa'
    }


def test_a_compiler_that_fails_is_told_as_not_compiled(setting, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError('no compiler')

    monkeypatch.setattr(torch, 'compile', fail)
    steps = build_steps(setting(), Case('x', options={'TRAIN.COMPILE': 'max'}))
    steps()
    assert steps.describe()['compile'] == 'max' and steps.describe()['compiled'] is False


def test_a_compiled_model_is_told_as_such(setting, monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda module, **_: lambda *inputs: module(*inputs))
    steps = build_steps(setting(), Case('x', options={'TRAIN.COMPILE': 'max'}))
    steps()
    assert steps.describe()['compiled'] is True


@pytest.mark.parametrize('fused, waits', [(False, True), (True, False)])
def test_published_steps_are_made_as_asked(fused, waits, setting, monkeypatch):
    looks = []
    monkeypatch.setattr(torch.Tensor, 'item', lambda tensor: looks.append(tensor))
    steps = build_steps(setting(), Case('p', Published(None, waits=waits, fused=fused)))
    monkeypatch.setattr(steps.optimizer, 'step', lambda: None)
    looks.clear()
    steps()
    assert len(looks) == 2 * waits  # loss and norm
    assert bool(steps.optimizer.defaults['fused']) is fused
    assert steps.describe()['waits'] is waits and steps.describe()['fused_adamw'] is fused
    block = next(m for m in steps.model.modules() if isinstance(m, SwinTransformerBlock))
    assert 'forward' in vars(block)


def test_float16_is_scaled_and_bfloat16_is_not(setting):
    """On the CPU, where autocast and scaler work, too."""
    for dtype in (torch.float16, torch.bfloat16):
        steps = build_steps(setting(), Case('p', Published(dtype)))
        assert steps.scaler.is_enabled() is (dtype == torch.float16)
        found = []
        steps.model.encoder.layers[0].blocks[0].mlp.fc1.register_forward_hook(
            lambda *args, found=found: found.append(args[-1].dtype)
        )
        steps()
        assert found == [dtype] and steps.loss.isfinite()


# Batches


def test_the_batch_is_as_the_loaders_and_seeded(setting):
    run = setting().run()
    images, masks = synthetic_batch(run)
    assert images.shape == (2, 1, 32, 32) and images.dtype == torch.float32
    assert masks.shape == (2, 16, 16) and masks.sum((1, 2)).tolist() == [16 * 10] * 2
    assert not torch.equal(masks[0], masks[1])
    again = synthetic_batch(setting().run())
    assert all(torch.equal(a, b) for a, b in zip((images, masks), again, strict=True))
    other = synthetic_batch(setting(opts=['SEED', '1']).run())
    assert not torch.equal(images, other[0])


def test_labels_are_of_both_kinds(setting):
    images, targets, places = synthetic_batch(setting('finetune').run())
    assert targets.shape == (2, 14) and sorted(targets.unique().tolist()) == [0, 1]
    assert len(images) == len(places) == 2


def test_a_probe_makes_no_steps(setting):
    with pytest.raises(ValueError, match='linear_probe.*no training steps'):
        setting('finetune', opts=['FINETUNE.MODE', 'linear_probe']).run()


def test_nothing_is_resumed_or_loaded(setting):
    opts = ['PRETRAINED', 'weights.pth', 'MODEL.RESUME', 'x.pth', 'TRAIN.AUTO_RESUME', 'True']
    config = setting(opts=opts).run().config
    assert (config.PRETRAINED, config.MODEL.RESUME, config.TRAIN.AUTO_RESUME) == ('', '', False)
    assert config.DATA.BATCH_SIZE == 2
