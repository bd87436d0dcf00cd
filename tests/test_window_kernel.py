"""The Triton kernel for window attention, interpreted and compiled; no GPU runs it here."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import window_kernel
from models.window_kernel import window_attention

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    'window 4',
    'window 6, shifted',
    'window 7',
    'window 7, shifted',
    'heads of 48',
    'bfloat16',
    'float16',
)
SHARED_MEMORY = {75: 64, 80: 163, 90: 227}  # KiB a program can have
TYPES = {'float32': '*fp32', 'bfloat16': '*bf16', 'float16': '*fp16'}


def python(*args: str, **environment: str) -> str:
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': paths} | environment
    done = subprocess.run(
        [sys.executable, *args], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def interpreted(what: str) -> dict:
    pytest.importorskip('triton')
    script = str(ROOT / 'tests' / 'window_kernel_cases.py')
    return json.loads(python(script, what, TRITON_INTERPRET='1').splitlines()[-1])


@pytest.fixture(scope='module')
def values() -> dict:
    return interpreted('values')


@pytest.fixture(scope='module')
def compiled() -> dict:
    return interpreted('compiled')


@pytest.mark.parametrize('name', NAMES)
def test_result_and_gradients_are_those_of_the_definition(values, name):
    """In float64; 16-bit types come as near as eager does, the bias as near as in float32."""
    found = values[name]
    half = name in ('bfloat16', 'float16')
    bounds = [2 * error for error in found['errors_of_eager'][:2]] if half else 2 * [1e-6]
    bounds.append(1e-6)
    for part, error, bound in zip(('out', 'dqkv', 'dbias'), found['errors'], bounds, strict=True):
        assert error <= bound, part
    dtype = f'torch.{name}' if half else 'torch.float32'
    assert found['types'] == [dtype, dtype, 'torch.float32']


def test_the_same_bits_again(values):
    assert values['again'] == {'twice': True, 'transposed': True}


@pytest.mark.slow
def test_compiles_to_one_graph(compiled):
    assert compiled['compiled'] == {'graphs': 1, 'same_bits': True}


@pytest.mark.slow
def test_is_a_proper_operator(compiled):
    assert set(compiled['operator'].values()) == {'SUCCESS'}


@pytest.mark.slow
def test_a_swin_with_it_is_the_eager_swin(compiled):
    assert compiled['model'] < 1e-5


def attend(tokens: int, heads: int, channels: int, dtype: torch.dtype = torch.float32) -> None:
    qkv, bias = torch.zeros(1, tokens, channels, dtype=dtype), torch.zeros(heads, tokens, tokens)
    window_attention(qkv, bias, torch.arange(tokens), None, scale=1.0)


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ((144, 1, 96), r'windows of up to 64 tokens \(8 x 8\), not of 144'),
        ((16, 2, 144), r'heads of 16, 32, ... 64 channels in torch.float32; qkv has 144 channels'),
        ((16, 1, 384), r'heads of 16, 32, ... 64 channels in torch.float32; qkv has 384 channels'),
        ((16, 1, 768, torch.float16), r'heads of 16, 32, ... 128 channels in torch.float16'),
        ((16, 1, 96, torch.float64), r'float32, bfloat16 and float16, not torch.float64'),
    ],
)
def test_refuses_what_it_is_not_made_for(sizes, message):
    with pytest.raises(ValueError, match=message):
        attend(*sizes)


def test_needs_a_gpu_unless_interpreted():
    triton = pytest.importorskip('triton')
    if not isinstance(window_kernel._forward, triton.JITFunction):
        pytest.skip('Triton interprets: TRITON_INTERPRET is set')
    with pytest.raises(RuntimeError, match='needs a GPU'):
        attend(16, 1, 96)


def test_only_the_call_needs_triton():
    code = """
import sys, torch
sys.modules['triton'] = None
from models.window_kernel import window_attention
try:
    window_attention(torch.zeros(1, 16, 48), torch.zeros(1, 16, 16), None, None, scale=1.0)
except RuntimeError as error:
    print(error)
"""
    assert 'needs the package triton' in python('-c', code)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('capability', 'dtype'),
    [(c, d) for c in SHARED_MEMORY for d in TYPES if (c, d) != (75, 'bfloat16')],
)
def test_fits_a_gpu(capability, dtype, monkeypatch, tmp_path):
    """The compiler's figures for windows of 7: shared memory and, but for sm_75, no spills."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    for kernel, options in launches(monkeypatch, getattr(torch, dtype)):
        cubin, shared = build(kernel, options, TYPES[dtype], capability)
        assert shared <= SHARED_MEMORY[capability] * 1024
        stack = stack_bytes(cubin, tmp_path)
        assert capability == 75 or stack <= 64, f'{stack} bytes of spilled registers a thread'


def launches(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> list[tuple]:
    """Both kernels with the constants and options they are called with."""
    pytest.importorskip('triton')
    found = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **options: found.append((self.kernel, options))

    for name in ('_forward', '_backward'):
        monkeypatch.setattr(window_kernel, name, Recorder(getattr(window_kernel, name)))
    qkv = torch.zeros(1, 49, 96, dtype=dtype, requires_grad=True)
    rest = torch.zeros(1, 49, 49), torch.arange(49), torch.zeros(1, 49, 49)
    window_kernel._attention(qkv, *rest, 1.0).sum().backward()
    return found


def build(kernel: object, options: dict, pointer: str, capability: int) -> tuple[bytes, int]:
    """Machine code and shared memory in bytes."""
    import triton
    from triton.compiler import ASTSource

    compiler = pytest.importorskip('triton.backends.compiler')
    if 'constexprs' not in inspect.signature(ASTSource).parameters:
        pytest.skip(f'another API for compiling ahead: triton {triton.__version__}')
    own = {'bias': '*fp32', 'mask': '*fp32', 'dbias': '*fp32', 'order': '*i64', 'scale': 'fp32'}
    own |= {'B': 'i32', 'L': 'i32', 'C': 'i32'}
    names = kernel.arg_names
    signature = {n: 'constexpr' if n in options else own.get(n, pointer) for n in names}
    constants = {(names.index(name),): options[name] for name in names if name in options}
    sixteenths = [i for i, name in enumerate(names) if '*' in signature[name] or name == 'C']
    aligned = {(i,): [['tt.divisibility', 16]] for i in sixteenths}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = compiler.GPUTarget('cuda', capability, 32)
    flags = {name: options[name] for name in ('num_warps', 'num_stages')}
    built = triton.compile(source, target=target, options=flags)
    return built.asm['cubin'], built.metadata.shared


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """Bytes a thread keeps in memory for want of registers."""
    import triton

    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    if not tool.is_file():
        pytest.skip('no cuobjdump beside triton')
    file = folder / 'kernel.cubin'
    file.write_bytes(cubin)
    usage = subprocess.run([tool, '-res-usage', file], capture_output=True, text=True, check=True)
    return int(re.search(r'STACK:(\d+)', usage.stdout)[1])
