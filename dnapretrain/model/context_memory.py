"""Values that Transformer Engine's attention over context-parallel ranks keeps for its backward pass and has for a moment, per token.

Read in Transformer Engine 2.11, transformer_engine/pytorch/attention/dot_product_attention/context_parallel.py; its classes are named
below. Each is given contiguous queries, keys and values (backends.py makes them so), which no longer lie in the projection's result.
Widths are those of this rank: all queries, and all keys (values alike). Softmax statistics are not among these values.
"""

from __future__ import annotations


def kept_values(way: str, query: int, key_value: int) -> int:
    """What autograd holds per token of this rank between the passes, the result that the next layer keeps among it; `way`: cp_comm_type.

    No way holds keys and values of other ranks' tokens: all_gather gathers once more, a2a holds whole sequences of its share of heads.
    """
    if way == "p2p":  # AttnFuncWithCPAndKVP2P: queries, one buffer of keys and values (the last that arrived), the result
        return 2 * query + 2 * key_value
    # AttnFuncWithCPAndKVAllGather: both halves' results (out_per_step) and these behind each other. AttnFuncWithCPAndQKVOA2A: the
    # result for its heads (out_part) and, exchanged back, for its tokens.
    return 3 * query + 2 * key_value


def moment_values(way: str, query: int, key_value: int, cp: int, is_causal: bool) -> int:
    """The most per token of this rank that forward or backward pass of one layer has beside what is kept, on the rank that has most."""
    if way == "a2a":  # backward: gradients of all for its heads, in the order of ranks, and exchanged back; the result's four times
        return 3 * (query + 2 * key_value) + 4 * query
    if way == "all_gather":
        # Backward: keys and values gathered, sums of their gradients and one of these in another order, and what both halves of the
        # queries add to them: those up to each half's end if causal, else all. Of the queries the result's gradient and twice their own.
        added = 2 * cp + 1 if is_causal else 4 * cp
        return (5 * cp + added) * key_value + 3 * query
    # Forward: all buffers of the ring stay until the last has come (p2p_comm_buffers), and each step's result (out_per_step); the last
    # rank of a causal ring has results of all its queries in each. Backward: two buffers of keys, values and their gradients.
    forward = cp * (query + 2 * key_value)
    return max(forward, 3 * query + 10 * key_value)
