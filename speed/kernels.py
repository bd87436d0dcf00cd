"""Where the time of a step goes: kernels and operators by group."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first that is found in a name decides; what none is found in is 'other'. Kernels do not say
# whose product they compute: those of attention that is written out count as GEMM on a GPU.
# Reductions count as elementwise; gathers and scatters as copies.
GROUPS = {
    'optimizer': r'multi_tensor_apply|^triton_for_fused|adam|_foreach_|^aten::_amp_|^Optimizer\.',
    'attention': (
        r'flash|fmha|sdpa|scaled_dot_product|softmax|window_attention|^_(forward|backward)(_\d+)?$'
        r'|^aten::(bmm|baddbmm)$'
    ),
    'GEMM': (
        r'gemm|cutlass|xmma|nvjet|cublas|wgrad|dgrad|fprop|splitk|^triton_(tem|mm)'
        r'|^aten::(mm|addmm|linear)$|^mkldnn|^mkl::|conv(olution)?\d?d?(_|$)'
    ),
    'norm': r'layer_?norm|GammaBeta|group_?norm',
    'copy': (
        r'memcpy|memset|copy_kernel|CatArray|roll_cuda|(^|::)index|gather_kernel|scatter|nchwToNhwc'
        r'|^triton_poi_fused(_(_?to_copy|_?unsafe_view|clone|cat|roll|view|permute|transpose|slice'
        r'|constant_pad_nd|expand|zeros|full))+_\d+$'
        r'|^aten::(\w*copy_?|\w*index\w*|cat|clone|contiguous|roll|zero_|fill_|stack|pad)$|IndexBackward'
    ),
    'elementwise': (
        r'elementwise|reduce|reduction|dropout|^triton_(poi|per|red)_|^(graph_\d+_)?cpp_fused'
        r'|^aten::(add|sub|mul|div|gelu|gelu_backward|sum|mean|where|bernoulli|abs|sgn|neg|sqrt|rsub'
        r'|l1_loss|pow|exp|log|sigmoid|lerp|addcmul|addcdiv|norm|linalg_vector_norm|eq|ne|lt|le'
        r'|gt|ge|clamp|masked_fill|pixel_shuffle|binary_cross_entropy_with_logits)_?$'
    ),
}
_PATTERNS = {group: re.compile(pattern, re.IGNORECASE) for group, pattern in GROUPS.items()}
OTHER = 'other'
ALL_GROUPS = (*('attention', 'GEMM', 'norm', 'elementwise', 'optimizer', 'copy'), OTHER)


@cache
def group_of(name: str) -> str:
    """The group of a kernel (CUDA) or operator (CPU) by its name."""
    return next((group for group, found in _PATTERNS.items() if found.search(name)), OTHER)


def kernel_shares(step: Callable[[], Any], device: torch.device, repeats: int = 2) -> dict:
    """Share of each group in the time of the device's kernels; on the CPU, of operators."""
    on_gpu = device.type == 'cuda'
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiler:
        for _ in range(repeats):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    return shares(profiler.events(), DeviceType.CUDA if on_gpu else DeviceType.CPU)


def shares(events: Iterable[Any], kind: DeviceType) -> dict[str, float]:
    """Group -> its share of the own time of a profile's events on one kind of device."""
    times = Counter()
    for event in events:
        if event.device_type != kind:
            continue
        if kind == DeviceType.CUDA:
            if not _is_range(event):
                times[group_of(event.name)] += event.self_device_time_total
        else:
            group = 'optimizer' if _in_optimizer(event) else group_of(event.name)
            times[group] += event.self_cpu_time_total
    total = sum(times.values())
    return {group: times[group] / total if total else 0.0 for group in ALL_GROUPS}


def _is_range(event: Any) -> bool:
    """Whether this is no kernel, but a note around some."""
    return bool(getattr(event, 'is_user_annotation', False)) or event.name.startswith(
        ('Optimizer.', 'ProfilerStep', 'Torch-Compiled', '## Call')
    )


def _in_optimizer(event: Any) -> bool:
    """Whether this operator, or one that called it, is the optimizer's: it calls plain ones."""
    while event is not None and group_of(event.name) != 'optimizer':
        event = event.cpu_parent
    return event is not None
