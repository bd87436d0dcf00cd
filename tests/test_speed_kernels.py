# ruff: noqa: E501 -- the names are as they are
"""Every kernel is in its group, by names that profiles have had, and shares are of own time."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from speed.kernels import ALL_GROUPS, GROUPS, group_of, kernel_shares, shares

NAMES = {
    'attention': """
        void (anonymous namespace)::softmax_warp_forward<c10::Half, c10::Half, float, 6, false, false>(c10::Half*, c10::Half const*, int, int, int, bool const*, int, bool)
        void (anonymous namespace)::softmax_warp_backward<float, c10::Half, float, 8, false, false>(c10::Half*, float const*, float const*, int, int, int, bool const*)
        void at::native::(anonymous namespace)::cunn_SoftMaxForwardSmem<8, float, float, float, at::native::(anonymous namespace)::SoftMaxForwardEpilogue, long>(float*, float const*, long)
        void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<32, 128, 128, 4, false, false, cutlass::bfloat16_t> >(pytorch_flash::Flash_fwd_params)
        void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<pytorch_flash::Flash_bwd_kernel_traits<64, 128, 128, 8, 4, 4, 4, false, false, cutlass::bfloat16_t> >(pytorch_flash::Flash_bwd_params)
        fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t, cutlass::arch::Sm80, true, 64, 64, 64, true, true>::Params)
        fmha_cutlassB_f16_aligned_64x64_k32_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<cutlass::arch::Sm80, cutlass::half_t, true, false, true, 64, 64, 32>::Params)
        cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_cga1x1x1_kernel0_0
        triton_per_fused__softmax_add_4
        triton_red_fused__softmax__softmax_backward_data__to_copy_add_mul_31
        triton_per_fused__to_copy__safe_softmax_add_2
        _forward
        _backward
        _backward_0
        aten::bmm
        aten::_softmax
        aten::_softmax_backward_data
        aten::scaled_dot_product_attention
        aten::_scaled_dot_product_flash_attention_for_cpu
        autograd::engine::evaluate_function: SoftmaxBackward0
    """,
    'GEMM': """
        sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas
        sm90_xmma_gemm_bf16bf16_bf16f32_f32_nt_n_tilesize128x128x64_warpgroupsize2x1x1_bias_bf16_execute_segment_k_off_kernel__5x_cublas
        nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT
        nvjet_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNN
        cutlass_80_tensorop_f16_s16816gemm_f16_128x128_64x3_nn_align8
        void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>(cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8::Params)
        ampere_fp16_s16816gemm_fp16_128x64_ldg8_f2f_stages_32x6_nn
        turing_fp16_s1688gemm_fp16_128x128_ldg8_f2f_tn
        volta_sgemm_128x64_nn
        void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, false, true, true>(cublasLt::cublasSplitKParams<float>)
        void gemmSN_NN_kernel<float, 256, 4, 2, 8, 4, 4, false>(cublasGemmSmallNParams)
        sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x64x64_cta1x1x1_g1_1_strided
        sm80_xmma_wgrad_implicit_gemm_indexed_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x32_stage4
        void implicit_convolve_sgemm<float, float, 128, 5, 5, 3, 3, 3, 1, false, false, true>(int, int, int)
        triton_tem_fused_addmm_gelu_7
        triton_tem_fused__to_copy_mm_t_12
        triton_mm
        aten::addmm
        aten::mm
        aten::linear
        aten::mkldnn_convolution
        aten::convolution_backward
        aten::_slow_conv2d_forward
        mkldnn::_linear_pointwise
        mkl::_mkl_linear
    """,
    'norm': """
        void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>(int, float, float const*, float const*, float const*, float*, float*, float*)
        void at::native::(anonymous namespace)::layer_norm_grad_input_kernel_vectorized<float, float, false>(float const*, float const*, float const*, float const*, float const*, float*, int)
        void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<float, float, 32u, 32u, 128u, true, true, false>(long, long, float const*, float const*)
        void at::native::(anonymous namespace)::cuComputePartGradGammaBeta<float, float>(float const*, float const*, long, long, float const*)
        triton_per_fused_add_native_layer_norm_native_layer_norm_backward_12
        triton_red_fused__to_copy_add_native_layer_norm_view_3
        triton_per_fused_add_layer_norm_9
        cpp_fused_add_native_layer_norm_2
        aten::native_layer_norm
        autograd::engine::evaluate_function: NativeLayerNormBackward0
    """,
    'elementwise': """
        void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::Half>, std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<c10::Half>, std::array<char*, 3ul>)
        void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&, at::native::GeluType)::{lambda()#2}::operator()() const::{lambda()#3}, std::array<char*, 2ul> >(int)
        void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::BinaryFunctor<float, float, float, at::native::binary_internal::MulFunctor<float> > > >(int)
        void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::func_wrapper_t<float, at::native::sum_functor<float, float, float>::operator()(at::TensorIterator&)::{lambda(float, float)#1}>, unsigned int, float, 4> >(at::native::ReduceOp)
        void at::native::(anonymous namespace)::fused_dropout_kernel_vec<float, float, unsigned int, 1, 4, bool>(at::cuda::detail::TensorInfo)
        triton_poi_fused_gelu_5
        triton_poi_fused_add_clone_view_7
        triton_red_fused_sum_3
        triton_poi_fused__to_copy_gelu_gelu_backward_18
        cpp_fused_gelu_4
        graph_0_cpp_fused_add_mul_1
        aten::gelu_backward
        aten::mul_
        aten::add
        aten::sum
        aten::bernoulli_
    """,
    'optimizer': """
        void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::FusedOptimizerTensorListMetadata<4>, at::native::(anonymous namespace)::FusedAdamMathFunctor<float, 4, (at::native::ADAM_MODE)1, false>, float const*>(int)
        void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::TensorListMetadata<1>, at::native::(anonymous namespace)::LpNormFunctor<float, (at::native::NormType)1, float, 1, 1, 0>, float*>(int)
        void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::TensorListMetadata<4>, at::native::(anonymous namespace)::PointwiseOpScalarListFunctor<float, 4, 3, 0>, std::divides<float> >(int)
        triton_for_fused_0
        aten::_foreach_norm
        aten::_foreach_mul_
        aten::_fused_adamw_
        aten::_amp_foreach_non_finite_check_and_unscale_
        Optimizer.step#AdamW.step
        Optimizer.zero_grad#AdamW.zero_grad
    """,
    'copy': """
        void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}::operator()() const::{lambda()#10}> >(int)
        void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda(float)#1}, std::array<char*, 2ul> >(int)
        void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<at::native::(anonymous namespace)::OpaqueType<4u>, unsigned int, 3, 64, 64, 16, 4>(char*)
        void at::native::(anonymous namespace)::roll_cuda_kernel<float>(float const*, float*, long, long, long, long, long, long)
        void at::native::index_elementwise_kernel<128, 4, at::native::gpu_index_kernel<at::native::index_kernel_impl<at::native::OpaqueType<4> > > >(long)
        void at::native::(anonymous namespace)::indexing_backward_kernel<float, 4>(long const*, long const*, float const*, float*, long, long, long, long, bool)
        void at::native::(anonymous namespace)::indexSelectLargeIndex<float, long, unsigned int, 2, 2, -2, true>(at::cuda::detail::TensorInfo)
        void at::native::vectorized_gather_kernel<16, long>(char*, char*, long*, int, long, long, long, long, bool)
        void cudnn::engines_precompiled::nchwToNhwcKernel<__half, __half, float, false, true, (cudnnKernelDataType_t)0>(cudnn::engines_precompiled::nchw2nhwc_params_t<float>, __half const*, __half*)
        Memcpy DtoD (Device -> Device)
        Memcpy HtoD (Pinned -> Device)
        Memset (Device)
        triton_poi_fused__to_copy_12
        triton_poi_fused_clone_7
        triton_poi_fused__to_copy_cat_permute_view_31
        triton_poi_fused_constant_pad_nd_2
        aten::copy_
        aten::_to_copy
        aten::cat
        aten::roll
        aten::index
        aten::_index_put_impl_
        aten::fill_
    """,
    'other': """
        void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<at_cuda_detail::cub::DeviceRadixSortPolicy<long, at::cuda::cub::detail::OpaqueType<8>, unsigned long long>::Policy900, false>(long)
        aten::as_strided
        aten::view
        aten::empty
        aten::item
        cudaDeviceSynchronize
        Torch-Compiled Region: 0/0
        AccumulateGrad
    """,
}
CASES = [(group, name.strip()) for group, text in NAMES.items() for name in text.split('\n')]


@pytest.mark.parametrize('group, name', [case for case in CASES if case[1]])
def test_every_name_has_its_group(group, name):
    assert group_of(name) == group


def test_the_groups_are_all_of_the_table():
    assert set(ALL_GROUPS) == {*GROUPS, 'other'} == set(NAMES)


def event(name: str, kind: DeviceType, time: float, **more: object) -> SimpleNamespace:
    times = {'self_device_time_total': time, 'self_cpu_time_total': time}
    return SimpleNamespace(name=name, device_type=kind, **times, **{'cpu_parent': None} | more)


def test_on_a_gpu_only_its_kernels_count_and_no_ranges_around_them():
    events = [
        event('nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT', DeviceType.CUDA, 6.0),
        event('triton_poi_fused_gelu_5', DeviceType.CUDA, 2.0),
        event('Memset (Device)', DeviceType.CUDA, 1.0),
        event('something new', DeviceType.CUDA, 1.0),
        event('aten::mm', DeviceType.CPU, 50.0),
        event('Optimizer.step#AdamW.step', DeviceType.CUDA, 50.0),
        event('a note', DeviceType.CUDA, 50.0, is_user_annotation=True),
    ]
    found = shares(events, DeviceType.CUDA)
    assert list(found) == list(ALL_GROUPS)
    wanted = {'GEMM': 0.6, 'elementwise': 0.2, 'copy': 0.1, 'other': 0.1}
    assert {group: share for group, share in found.items() if share} == wanted


def test_on_the_cpu_what_the_optimizer_calls_is_the_optimizers():
    step = event('Optimizer.step#AdamW.step', DeviceType.CPU, 1.0)
    inner = event('aten::add_', DeviceType.CPU, 2.0, cpu_parent=step)
    events = [
        step, inner, event('aten::sqrt', DeviceType.CPU, 1.0, cpu_parent=inner),
        event('aten::add_', DeviceType.CPU, 4.0), event('aten::mm', DeviceType.CUDA, 50.0),
    ]  # fmt: skip
    found = shares(events, DeviceType.CPU)
    wanted = {'optimizer': 0.5, 'elementwise': 0.5}
    assert {group: share for group, share in found.items() if share} == wanted


def test_no_events_have_no_shares():
    assert set(shares([], DeviceType.CUDA).values()) == {0.0}


def test_a_step_is_profiled_as_often_as_asked():
    a, calls = torch.ones(64, 64), []

    def step() -> None:
        calls.append(torch.mm(a, a).softmax(0).add(1))

    found = kernel_shares(step, torch.device('cpu'))
    assert len(calls) == 2
    assert abs(sum(found.values()) - 1) < 1e-9
    assert min(found['GEMM'], found['attention'], found['elementwise']) > 0
    assert found['norm'] == found['optimizer'] == 0
