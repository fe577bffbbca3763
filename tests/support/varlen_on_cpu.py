"""torch's varlen kernel as one opaque operator on the CPU, as it is on CUDA: what compiled layers call."""

import torch


def segments(query, key, value, cu_seq_q, cu_seq_k):
    """(H, Q, D), (H, K, D), (H, K, D) and what is allowed, of each segment that has queries."""
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    for n in range(len(cu_seq_q) - 1):
        at_q, at_k = slice(cu_seq_q[n], cu_seq_q[n + 1]), slice(cu_seq_k[n], cu_seq_k[n + 1])
        rows, columns = at_q.stop - at_q.start, at_k.stop - at_k.start
        allowed = torch.ones(rows, columns, dtype=torch.bool).tril(int(columns - rows))
        yield at_q, at_k, *(t.transpose(0, 1) for t in (query[at_q], key[at_k], value[at_k])), allowed


def weights_of(q, k, allowed, scale):
    return (q @ k.transpose(1, 2) * scale).masked_fill(~allowed, float("-inf")).softmax(-1)


@torch.library.custom_op("rmcli_tests::varlen", mutates_args=())
def varlen_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    output = torch.zeros_like(query)
    for at_q, _, q, k, v, allowed in segments(query, key, value, cu_seq_q, cu_seq_k):
        output[at_q] = (weights_of(q, k, allowed, scale) @ v).transpose(0, 1)
    return output


@torch.library.custom_op("rmcli_tests::varlen_backward", mutates_args=())
def varlen_backward(
    above: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads = query.shape[1]
    to_query, to_key, to_value = (torch.zeros(len(t), heads, t.shape[2]) for t in (query, key, value))
    for at_q, at_k, q, k, v, allowed in segments(query, key, value, cu_seq_q, cu_seq_k):
        weights, over = weights_of(q, k, allowed, scale), above[at_q].transpose(0, 1)
        to_weights = over @ v.transpose(1, 2)
        to_logits = weights * (to_weights - (to_weights * weights).sum(-1, keepdim=True)) * scale
        to_query[at_q] = (to_logits @ k).transpose(0, 1)
        to_key[at_k] = (to_logits.transpose(1, 2) @ q).transpose(0, 1)
        to_value[at_k] = (weights.transpose(1, 2) @ over).transpose(0, 1)
    # As a kernel that allocates without filling: rows that no segment has must never be read.
    to_key[int(cu_seq_k[-1]) :] = to_value[int(cu_seq_k[-1]) :] = float("nan")
    return to_query, *(t.unflatten(1, (key.shape[1], -1)).sum(2) for t in (to_key, to_value))


varlen_kernel.register_fake(lambda query, *_: torch.empty_like(query))


varlen_backward.register_fake(lambda above, query, key, value, *_: tuple(map(torch.empty_like, (query, key, value))))


varlen_kernel.register_autograd(
    lambda ctx, above: (*varlen_backward(above, *ctx.saved_tensors, ctx.scale), None, None, None),
    setup_context=lambda ctx, inputs, output: (ctx.save_for_backward(*inputs[:5]), setattr(ctx, "scale", inputs[5])),
)


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    assert window_size == (-1, 0)
    assert query.shape[1] == key.shape[1] or not torch.compiler.is_compiling()  # spread for their gradients' sum
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert max_q >= (cu_seq_q[1:] - cu_seq_q[:-1]).max() if not torch.compiler.is_compiling() else True
    return varlen_kernel(query, key, value, cu_seq_q, cu_seq_k, scale)
