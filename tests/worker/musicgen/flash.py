"""A CPU stand-in for torch's varlen attention, which has CUDA kernels only."""

import torch


def varlen_attn_out(out, query, keys, values, starts_q, starts_k, max_q, max_k, *, seqused_k):
    """One query for each row. Refuses what the kernels refuse, but for float32."""
    total, _, head = keys.shape
    assert query.dtype == keys.dtype == values.dtype == out.dtype
    assert max_q == 1 and len(starts_q) == len(starts_k) == len(query) + 1 == len(seqused_k) + 1
    assert head % 8 == 0 and all(x.stride(-1) == 1 for x in (query, keys, values, out))
    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in (starts_q, starts_k, seqused_k))
    for row, (start, length) in enumerate(zip(starts_k[:-1], seqused_k, strict=True)):
        assert starts_q[row] == row and 0 < length <= max_k and start + length <= total
        mine = slice(int(start), int(start + length))
        scores = torch.einsum("hd,chd->hc", query[row].float(), keys[mine].float()) * head**-0.5
        out[row] = torch.einsum("hc,chd->hd", scores.softmax(-1), values[mine].float())
