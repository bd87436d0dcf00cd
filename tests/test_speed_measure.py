"""Turns of the cases: what is timed, in which order, alone in memory; failures stay rows."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import SWIN, VIT, tiny_config
from torch.utils.flop_counter import FlopCounterMode

import speed.measure as measure_module
from models import build_model
from speed.cases import Case
from speed.measure import flops_per_image, matrix_rate, measure
from speed.steps import Setting

CPU = torch.device('cpu')


class FakeSteps:
    """Each step takes as many seconds as its case says: the first one, the others."""

    dtype = None
    alive = 0

    def __init__(self, log: list, clock: 'FakeClock', case: Case) -> None:
        first, *rest = case.options['seconds']
        self.log, self.clock, self.name = log, clock, case.name
        self.seconds, self.made = (first, *rest), 0
        self.loss = torch.tensor(case.options.get('loss', 1.0))
        self.fails = case.options.get('fails', 10**9)
        FakeSteps.alive += 1
        log.append((self.name, FakeSteps.alive))

    def __del__(self) -> None:
        FakeSteps.alive -= 1

    def __call__(self) -> None:
        self.clock.now += self.seconds[min(self.made, len(self.seconds) - 1)]
        self.made += 1
        if len(self.log) >= self.fails:
            raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate 1.00 GiB')

    def describe(self) -> dict:
        return {'code': self.name}


class FakeClock:
    now = 0.0


@pytest.fixture
def bench(monkeypatch):
    """measure() over made-up cases; the log has each build, and how many are alive then."""
    log, clock, profiled = [], FakeClock(), []
    monkeypatch.setattr(measure_module, 'gc', SimpleNamespace(collect=lambda: None))  # slow

    def run(cases: list[Case], **counts: int):
        build = lambda setting, case: FakeSteps(log, clock, case)  # noqa: E731
        monkeypatch.setattr(measure_module, 'build_steps', build)
        monkeypatch.setattr(measure_module, 'synchronized_time', lambda device: clock.now)
        shares = lambda step, device: profiled.append((step.name, step.made)) or {'GEMM': 1.0}  # noqa: E731
        monkeypatch.setattr(measure_module, 'kernel_shares', shares)
        counts = {'steps': 4, 'warmup': 3, 'rounds': 2} | counts
        measured = measure(Setting('', 'pretrain', (), 8, CPU), cases, **counts)
        return measured, log, profiled

    return run


def case(name: str, *seconds: float, **options: object) -> Case:
    return Case(name, options={'seconds': seconds, **options})


def test_rates_are_those_of_steady_steps_and_the_rest_is_compiling(bench):
    """Batches of 8; first steps of 5 and 3 s, then 2 s each."""
    (one,), *_ = bench([case('a', 5.0, 3.0, 2.0)])
    assert one.rates == [8 / 2, 8 / 2]
    assert one.first_seconds == [5 + 3 - 2 * 2] * 2
    assert one.rate == 4 and one.loss == 1 and one.error == ''
    assert one.options == {'code': 'a'} and one.kernel_shares == {'GEMM': 1.0}
    assert one.peak_memory is None  # on the CPU


def test_warm_up_is_not_timed(bench):
    seconds = [9.0] * 6 + [2.0, 4.0, 100.0]
    (one,), *_ = bench([case('a', *seconds)], warmup=6, steps=2)
    assert one.rates == [8 / 3, 8 / 3]


def test_cases_take_turns_and_each_is_alone_in_memory(bench, monkeypatch):
    resets = []
    monkeypatch.setattr(torch.compiler, 'reset', lambda: resets.append(FakeSteps.alive))
    _, log, profiled = bench([case('a', 1.0), case('b', 2.0)], rounds=3, warmup=2)
    assert log == [('a', 1), ('b', 1)] * 4  # three rounds, and one for the profiles
    assert profiled == [('a', 2), ('b', 2)]
    assert resets == [0] * 8  # compiled code is forgotten after each


def test_a_case_that_fails_is_a_row_and_the_others_go_on(bench):
    broken = case('broken', 1.0, fails=1)
    (good, failed, last), log, _ = bench([case('a', 1.0), broken, case('c', 1.0)])
    assert failed.rates == []
    assert failed.error == 'OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB'
    assert failed.rate is None
    assert [name for name, _ in log] == ['a', 'broken', 'c', 'a', 'c', 'a', 'c']
    assert {alive for _, alive in log} == {1}
    assert len(good.rates) == len(last.rates) == 2 and not good.error + last.error


def test_a_loss_that_is_no_number_is_a_failure(bench):
    (one,), *_ = bench([case('a', 1.0, loss=float('nan'))])
    assert one.error == 'FloatingPointError: the loss is nan after 7 steps' and one.rates == []


def test_progress_counts_turns(bench, monkeypatch):
    seen = []
    bench([])  # puts what is made up in place
    measured = measure(
        Setting('', 'pretrain', (), 8, CPU), [case('a', 1.0)], steps=1, warmup=2, rounds=2,
        progress=lambda turns: [seen.append(turn[0]) or turn for turn in turns],
    )  # fmt: skip
    assert seen == [0, 1, 2] and len(measured[0].rates) == 2


@pytest.mark.parametrize('model', [SWIN, VIT], ids=['swin', 'vit'])
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_flops_are_three_times_those_of_the_forward_pass(stage, model, tmp_path):
    """Counted again on real numbers and our own model, over three images."""
    main = {'pretrain': 'simmim', 'finetune': 'finetune'}[stage]
    cfg = tiny_config(tmp_path / 'run.yaml', main, model)
    setting = Setting(str(cfg), stage, ['MODEL.ATTENTION', 'eager'], 2, CPU)
    own = build_model(setting.run().config, is_pretrain=stage == 'pretrain').eval()
    inputs = [torch.zeros(3, 1, 32, 32)]
    if stage == 'pretrain':
        side = 32 // (2 if model is SWIN else 8)
        inputs.append(torch.zeros(3, side, side, dtype=torch.int64))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        own(*inputs)
    assert flops_per_image(setting) == counter.get_total_flops() > 0  # three images


def test_flops_of_swin_base_are_those_of_the_published_figures():
    """11.28 GFLOPs of multiply-adds are logged for Swin-B at 192 px; ours has one channel."""
    cfg = next(Path('configs').rglob('simmim_finetune__swin_base__img192*chexpert_800ep.yaml'))
    flops = flops_per_image(Setting(str(cfg), 'finetune', (), 1, CPU))
    assert flops == pytest.approx(11.28e9 * 2 * 3, rel=0.03)


def test_the_rate_of_a_product(monkeypatch):
    """Its FLOPs over the time of the fastest."""
    times = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])  # 4, 2 and 3 seconds
    monkeypatch.setattr(measure_module, 'MATRIX_REPEATS', 3)
    monkeypatch.setattr(measure_module, 'MATRIX_SIDE', {'cpu': 16})
    monkeypatch.setattr(measure_module, 'synchronized_time', lambda device: next(times))
    kinds = []
    product = torch.mm
    monkeypatch.setattr(
        torch, 'mm', lambda a, b, out: kinds.append((a.dtype, b.shape)) or product(a, b, out=out)
    )
    assert matrix_rate(CPU, torch.bfloat16) == 2 * 16**3 / 2
    assert kinds == [(torch.bfloat16, (16, 16))] * 3
