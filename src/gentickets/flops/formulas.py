"""What is known of torch's operations, by name: what a product multiplies, and what is free."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Bound = Mapping[str, Any]
"""An operation's arguments by name."""

Product = tuple[int, Sequence[Tensor]]
"""(FLOPs, the tensors that are multiplied)."""

Formula = Callable[[Bound, Any], Iterable[Product] | None]
"""(arguments, result) → the products that were made; None where the shapes do not say."""


def first_tensor(out: Any) -> Tensor:
    """The first tensor of a result; an empty one where it holds none."""
    leaves = (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
    return out if isinstance(out, Tensor) else next(leaves, torch.empty(0))


def _matrices(left: str, right: str) -> Formula:
    """Left (…, k) times right (…, k, n) or (k,)."""

    def formula(bound: Bound, out: Any) -> Iterable[Product]:
        one, other = bound[left], bound[right]
        columns = other.shape[-1] if other.dim() > 1 else 1
        return [(2 * one.numel() * columns, (one, other))]

    return formula


def _linear(bound: Bound, out: Any) -> Iterable[Product]:
    given, weight = bound.get("input", bound.get("self")), bound["weight"]
    return [(2 * given.numel() * math.prod(weight.shape[:-1]), (given, weight))]


def _linear_backward(bound: Bound, out: Any) -> Iterable[Product]:
    flops, weight = 2 * bound["self"].numel() * bound["weight"].shape[0], bound["weight"]
    return [(flops, (weight,)) for _ in range(sum(bound["output_mask"][:2]))]


def _convolution(channels: int = 1, transposed: bool = False) -> Formula:
    """Each weight is used once at each place of the output; of the input where the convolution is transposed."""

    def formula(bound: Bound, out: Any) -> Iterable[Product]:
        given, weight = bound.get("input", bound.get("self")), bound["weight"]
        over = given if bound.get("transposed", transposed) else first_tensor(out)
        return [(2 * weight.numel() * _places(over, channels), (given, weight))]

    return formula


def _convolution_backward(bound: Bound, out: Any) -> Iterable[Product]:
    given, weight = bound.get("input", bound.get("self")), bound["weight"]
    over = given if bound.get("transposed", False) else bound["grad_output"]
    # The gradients of input and weight, each of as many products as the pass forward.
    return [(2 * weight.numel() * _places(over, 1), (weight,)) for _ in range(sum(bound["output_mask"][:2]))]


def _places(images: Tensor, channels: int) -> int:
    return math.prod(side for axis, side in enumerate(images.shape) if axis != channels)


_PACKED = ("cum_seq_q", "cu_seqlens_q")


def _attention(times: int, tokens: int = -2) -> Formula:
    """Queries with keys, and their weights with values: whole, where a causal mask leaves half of them out too.

    Backward there are four such products for two. What a fused form computes twice is counted once.
    """

    def formula(bound: Bound, out: Any) -> Iterable[Product] | None:
        query, key, value = (bound.get(name, bound.get(name[0])) for name in ("query", "key", "value"))
        if tokens == 1 and (query.dim() != 4 or any(isinstance(bound.get(name), Tensor) for name in _PACKED)):
            return None  # sequences of several lengths, one after another
        pairs = query.numel() // query.shape[-1] * key.shape[tokens] if query.shape[-1] else 0
        return [(2 * times * pairs * (query.shape[-1] + value.shape[-1]), (query, key, value))]

    return formula


def _recurrent(times: int, *weights: str) -> Formula:
    """Every matrix of a layer is multiplied with once a step, whatever its gates."""

    def formula(bound: Bound, out: Any) -> Iterable[Product]:
        given = bound["input"]
        steps = given.numel() // given.shape[-1] if given.shape[-1] else 0
        gradients = times - (not bound["output_mask"][-1]) if "output_mask" in bound else times
        matrices = [w for w in tree_leaves([bound[name] for name in weights]) if isinstance(w, Tensor) and w.dim() > 1]
        return [(2 * gradients * steps * matrix.numel(), (matrix,)) for matrix in matrices]

    return formula


def _trilinear(bound: Bound, out: Any) -> Iterable[Product]:
    """Sums of products of three, each with its own axes added: a multiply-add for each that is summed."""
    operands = [bound["i1"], bound["i2"], bound["i3"]]
    shapes = []
    for tensor, axes in zip(operands, (bound["expand1"], bound["expand2"], bound["expand3"]), strict=True):
        shape = list(tensor.shape)
        for axis in axes:
            shape.insert(axis, 1)
        shapes.append(shape)
    return [(2 * math.prod(torch.broadcast_shapes(*shapes)), operands)]


def _distances(bound: Bound, out: Any) -> Iterable[Product]:
    """Each pair of rows: a multiply-add for each of their numbers."""
    one, other = bound["x1"], bound["x2"]
    return [(2 * one.numel() * other.shape[-2], (one, other))]


def _named(text: str, formula: Formula) -> dict[str, Formula]:
    return {f"aten.{name}": formula for name in text.split()}


VECTORS = ("aten.mv", "aten.addmv", "aten.dot", "aten.vdot")

FORMULAS: dict[str, Formula] = {
    **_named("mm bmm _int_mm _scaled_mm", _matrices("self", "mat2")),
    **_named("addmm _addmm_activation", _matrices("mat1", "mat2")),
    **_named("baddbmm addbmm", _matrices("batch1", "batch2")),
    **_named("mv", _matrices("self", "vec")),
    **_named("addmv", _matrices("mat", "vec")),
    **_named("dot", _matrices("self", "tensor")),
    **_named("vdot", _matrices("self", "other")),
    **_named("linear mkldnn_linear", _linear),
    **_named("linear_backward", _linear_backward),
    **_named(
        "convolution _convolution convolution_overrideable cudnn_convolution cudnn_convolution_relu miopen_convolution "
        "miopen_convolution_relu miopen_depthwise_convolution mkldnn_convolution _mps_convolution _conv_depthwise2d "
        "conv_depthwise3d _slow_conv2d_forward slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d thnn_conv2d "
        "_nnpack_spatial_convolution",
        _convolution(),
    ),
    **_named(
        "cudnn_convolution_transpose miopen_convolution_transpose _mps_convolution_transpose slow_conv_transpose2d "
        "slow_conv_transpose3d",
        _convolution(transposed=True),
    ),
    **_named("conv_tbc", _convolution(channels=2)),
    **_named("convolution_backward convolution_backward_overrideable _slow_conv2d_backward", _convolution_backward),
    **_named(
        "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps "
        "_triton_scaled_dot_attention",
        _attention(1),
    ),
    **_named(
        "_scaled_dot_product_flash_attention_backward _scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward "
        "_scaled_dot_product_fused_attention_overrideable_backward",
        _attention(2),
    ),
    **_named("_flash_attention_forward _efficient_attention_forward", _attention(1, tokens=1)),
    **_named("_flash_attention_backward _efficient_attention_backward", _attention(2, tokens=1)),
    **_named("mkldnn_rnn_layer", _recurrent(1, "weight0", "weight1")),
    **_named("mkldnn_rnn_layer_backward", _recurrent(2, "weight1", "weight2")),
    **_named("_cudnn_rnn miopen_rnn", _recurrent(1, "weight")),
    **_named("_cudnn_rnn_backward miopen_rnn_backward", _recurrent(2, "weight")),
    **_named("_lstm_mps", _recurrent(1, "params")),
    **_named("_trilinear", _trilinear),
    **_named("_cdist_forward _cdist_backward _euclidean_dist", _distances),
}
"""Operation → what it multiplies. Checked one by one against formulas by hand in the tests."""


def _names(text: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in text.split())


NORMS = _names(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional _batch_norm_with_update "
    "_native_batch_norm_legit_no_training _batch_norm_with_update_functional _batch_norm_no_update "
    "cudnn_batch_norm miopen_batch_norm batch_norm_elemt native_layer_norm native_group_norm "
)

BLANK = _names("empty empty_like empty_strided empty_permuted new_empty new_empty_strided")

FROM_SHAPES = BLANK | _names(
    "zeros_like ones_like full_like rand_like randn_like randint_like new_zeros new_ones new_full"
)
"""What reads no more than the shape of what it is given."""

KEEP_ZEROS = _names(
    "neg abs clone _to_copy _lazy_clone _reshape_copy div relu leaky_relu tanh sin sqrt sign sgn trunc round "
    "floor ceil nan_to_num conj_physical _conj_physical _weight_norm_interface tril triu "
    "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
)
"""What is zero wherever its first argument is."""

MOVE = _names(
    "cat stack _stack index index_select gather take flip roll rot90 repeat constant_pad_nd select_scatter "
    "slice_scatter block_diag permute_copy transpose_copy t_copy expand_copy view_copy pixel_shuffle "
    "pixel_unshuffle where "
)
"""What puts numbers elsewhere: the same is done to their shadows."""

FREE = _names(
    # shapes, copies, moves
    "_unsafe_view _to_copy _reshape_copy _lazy_clone clone copy cat _stack stack _chunk_cat index _unsafe_index "
    "_unsafe_masked_index _unsafe_masked_index_put_accumulate index_select index_put _unsafe_index_put "
    "_index_put_impl index_add index_copy index_fill index_reduce gather scatter scatter_add scatter_reduce "
    "select_scatter slice_scatter diagonal_scatter as_strided_scatter masked_scatter masked_select masked_fill "
    "take put flip roll rot90 repeat repeat_interleave tril triu constant_pad_nd reflection_pad1d "
    "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle "
    "pixel_unshuffle channel_shuffle im2col col2im unfold slice select diagonal diag_embed block_diag "
    "unsafe_split unsafe_split_with_sizes unsafe_chunk resize resize_as set lift lift_fresh detach alias squeeze "
    "unsqueeze transpose t as_strided view_as_real view_as_complex _resize_output _copy_from "
    "_copy_from_and_resize _pin_memory record_stream _pack_padded_sequence _pad_packed_sequence to_padded_tensor "
    "_local_scalar_dense _has_same_storage_numel is_coalesced _to_dense _to_sparse sparse_mask sparse_dim "
    "_jagged_to_padded_dense_forward _padded_dense_to_jagged_forward dense_dim _nnz "
    "is_same_size is_pinned is_set_to equal allclose _assert_async "
    "_assert_scalar _assert_tensor_metadata _functional_assert_async _functional_assert_scalar _print sym_size "
    "sym_stride sym_numel sym_storage_offset sym_constrain_range sym_constrain_range_for_size "
    "_cudnn_rnn_flatten_weight _embedding_bag _embedding_bag_forward_only _embedding_bag_dense "
    "_embedding_bag_per_sample_weights embedding embedding_dense embedding_renorm "
    # made of nothing
    "empty empty_like empty_strided empty_permuted new_empty new_empty_strided new_full new_ones new_zeros zeros "
    "zeros_like ones ones_like full full_like eye arange range linspace logspace scalar_tensor tril_indices "
    "triu_indices zero fill _efficientzerotensor bartlett_window blackman_window hamming_window hann_window "
    "kaiser_window fft_fftfreq fft_rfftfreq complex polar from_file nonzero nonzero_static affine_grid_generator "
    # drawn
    "bernoulli binomial cauchy exponential geometric log_normal multinomial normal normal_functional poisson rand "
    "rand_like randint randint_like randn randn_like random randperm uniform native_dropout _fused_dropout "
    "_masked_scale rrelu_with_noise rrelu_with_noise_functional _standard_gamma _standard_gamma_grad "
    "_sample_dirichlet _dirichlet_grad _cudnn_init_dropout_state _fill_mem_eff_dropout_mask "
    # elementwise and activations
    "addr copysign floor_divide glu glu_jvp _prelu_kernel hardswish hardtanh hardsigmoid hardshrink softshrink "
    "softplus elu leaky_relu log_sigmoid_forward log_sigmoid threshold gelu silu mish sigmoid tanh logit _softmax "
    "_softmax_backward_data _log_softmax _log_softmax_backward_data _masked_softmax _safe_softmax _add_relu "
    "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
    "_fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fused_moving_avg_obs_fq_helper "
    "_fused_moving_avg_obs_fq_helper_functional _thnn_fused_gru_cell _thnn_fused_lstm_cell "
    "_thnn_fused_lstm_cell_backward_impl _thnn_differentiable_lstm_cell _transform_bias_rescale_qkv bucketize "
    "searchsorted isin histc histogram bincount "
    # reductions, orders
    "aminmax _aminmax cummax cummin _cummax_helper _cummin_helper cumprod cumsum logcumsumexp _logcumsumexp dist "
    "kthvalue median nanmedian mode sort topk trace renorm segment_reduce _segment_reduce _is_all_true "
    "_is_any_true _unique _unique2 unique_consecutive unique_dim unique_dim_consecutive linalg_vector_norm "
    "linalg_cross norm sum mean std var std_mean var_mean logsumexp amax amin argmax argmin any all prod max min "
    "count_nonzero hash_tensor "
    # pooling, resampling
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d "
    "avg_pool2d avg_pool3d fractional_max_pool2d fractional_max_pool3d max_pool2d max_pool2d_with_indices "
    "max_pool3d_with_indices max_unpool2d max_unpool3d grid_sampler_2d grid_sampler_3d "
    "_grid_sampler_2d_cpu_fallback cudnn_grid_sampler cudnn_affine_grid_generator upsample_bicubic2d "
    "upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    # norms (counted apart, forward), losses, optimisers
    "native_batch_norm batch_norm cudnn_batch_norm miopen_batch_norm native_layer_norm native_group_norm "
    "_fused_rms_norm batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_gather_stats "
    "batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats _weight_norm_interface "
    "native_norm binary_cross_entropy binary_cross_entropy_with_logits huber_loss mse_loss multi_margin_loss "
    "multilabel_margin_loss multilabel_margin_loss_forward nll_loss nll_loss_forward nll_loss2d "
    "nll_loss2d_forward smooth_l1_loss soft_margin_loss _amp_foreach_non_finite_check_and_unscale "
    "_amp_update_scale _fused_adagrad _fused_adam _fused_adamw _fused_sgd "
)
"""What is free beside what torch itself tags as elementwise, a reduction or a view; so are their backward passes."""
