"""The GPU kernel's code: one program per tile of query rows and head, one softmax per row over all kinds of keys.

Online softmax (FlashAttention-2, arXiv 2307.08691, algorithm 1) in base 2. Rows and keys are gathered through the
orders while they are loaded; nothing is copied or repeated. Addresses are 64-bit: q alone passes 2^31 elements at one
million tokens.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
NONE = tl.constexpr(2**31 - 1)  # no position, no class


@triton.jit
def _rows(rows, live, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Load [n, WIDTH] behind pointers to rows; what no row of the tile sees is not read, so it may hold NaN."""
    at = rows[:, None] + (FIRST + tl.arange(0, WIDTH))[None, :]
    if live is None:
        return tl.load(at)
    else:
        return tl.load(at, mask=live[:, None], other=0.0)


@triton.jit
def _entry(table, at, live, other: tl.constexpr):
    if live is None:
        return tl.load(table + at)
    else:
        return tl.load(table + at, mask=live, other=other)


@triton.jit
def _store(rows, inside, some, values, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    at = rows[:, None] + (FIRST + tl.arange(0, WIDTH))[None, :]
    tl.store(at, tl.where(some[:, None], values, 0.0).to(rows.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _steps(first, last, phase, stride):
    """Return the range of n for which first <= phase + n * stride <= last."""
    return tl.cdiv(tl.maximum(first - phase, 0), stride), tl.where(last < phase, 0, (last - phase) // stride + 1)


@triton.jit
def _absorb(state, query, source, slot, inside, rows, BODY: tl.constexpr, TAIL: tl.constexpr):
    """Absorb a block of key slots into the running softmax.

    inside None: every row sees every slot; rows None: all take part. The scale meets fp32 scores, not rounded queries;
    products of fp32 are three of TF32, good to about 2^-21.
    """
    acc, acc_tail, top, mass = state
    q, q_tail, limit, first, last = query
    k, v, k_s, v_s, k_order, k_position, k_bias, scale, softcap = source
    key = slot
    if k_order is not None:
        key = _entry(k_order, slot, inside, -1).to(tl.int32)
    live = inside
    if inside is not None:
        where = key
        live = inside & (key >= 0)
        if k_position is not None:
            where = _entry(k_position, key, live, -1).to(tl.int32)
        live = live & (where >= first) & (where <= last)
    far = key.to(tl.int64)
    s = tl.dot(q, tl.trans(_rows(k + far * k_s, live, 0, BODY)), input_precision="tf32x3")
    if TAIL > 0:
        s = tl.dot(q_tail, tl.trans(_rows(k + far * k_s, live, BODY, TAIL)), s, input_precision="tf32x3")
    s = s * scale
    if softcap is not None:
        s = softcap * (2 * tl.sigmoid(2 * s / softcap) - 1)  # softcap * tanh(s / softcap)
    if k_bias is not None:
        s += (_entry(k_bias, key, live, 0.0) * LOG2E)[None, :]
    if inside is not None:
        seen = live[None, :] & (where[None, :] <= limit[:, None])
        if rows is not None:
            seen = seen & rows[:, None]
        s = tl.where(seen, s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(new_top == float("-inf"), 0.0, new_top)  # where nothing is seen yet, -inf - -inf would be NaN
    p = tl.exp2(s - safe[:, None])
    fade = tl.exp2(top - safe)
    body = _rows(v + far * v_s, live, 0, BODY)
    acc = tl.dot(p.to(body.dtype), body, acc * fade[:, None], input_precision="tf32x3")
    if TAIL > 0:
        tail = _rows(v + far * v_s, live, BODY, TAIL)
        acc_tail = tl.dot(p.to(tail.dtype), tail, acc_tail * fade[:, None], input_precision="tf32x3")
    return acc, acc_tail, new_top, mass * fade + tl.sum(p, 1)


LENGTHS = [  # another length is no other kernel
    "causal_shift", "key_min", "row_step", "qo_b", "qo_h", "ko_b", "ko_h", "kp_b", "kp_h", "kb_b", "kb_h",
    "H", "T", "Sq", "W", "q_slots", "k_slots",
]  # fmt: skip


@triton.jit(do_not_specialize=LENGTHS)
def sparse_kernel(
    q, k, v, out, lse, run_ptr, run_start, run_full, col_ptr, col_idx, q_order, k_order, grid, slash, heads,
    q_len, k_len, k_start, k_first, k_position, k_bias, scale, softcap, causal_shift, key_min, row_step,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, out_b, out_h, out_s, qo_b, qo_h, ko_b, ko_h, kp_b, kp_h, kb_b, kb_h,
    H, T, Sq, W, q_slots, k_slots,
    G: tl.constexpr, SHARED: tl.constexpr, TOGETHER: tl.constexpr, TILE: tl.constexpr, RUN: tl.constexpr,
    BODY: tl.constexpr, TAIL: tl.constexpr, HAS_COLS: tl.constexpr, HAS_ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Programs that run together share keys: sample and key head outermost, then tiles, the long ones first, then heads.
    pid = tl.program_id(0)
    t = T - 1 - pid // TOGETHER % T
    group = pid // (TOGETHER * T)
    b = (group // (H // TOGETHER)).to(tl.int64)
    h = (group % (H // TOGETHER) * TOGETHER + pid % TOGETHER).to(tl.int64)
    entry = b * (H // SHARED) + h // SHARED  # of the tables
    head = h
    if heads is not None:
        head = tl.load(heads + h).to(tl.int64)

    slot = t * TILE + tl.arange(0, TILE)
    row = slot
    if q_order is not None:
        row = tl.load(q_order + b * qo_b + h // SHARED * qo_h + slot, mask=slot < q_slots, other=-1).to(tl.int32)
    rows, keys, start = Sq, W, 0
    if q_len is not None:
        rows = tl.load(q_len + b).to(tl.int32)
    if k_len is not None:
        keys = tl.load(k_len + b).to(tl.int32)
    if k_start is not None:
        start = tl.load(k_start + b).to(tl.int32)
    position = row + keys - rows
    real = (row >= 0) & (row < rows) & (position >= start)
    first = tl.maximum(key_min, start)
    if k_first is not None:
        first = tl.maximum(first, tl.load(k_first + b).to(tl.int32))
    limit = tl.where(real, row // row_step * row_step + keys - rows - causal_shift, -1)
    last = tl.max(limit, 0)

    q_rows = q + b * q_b + head * q_h + row.to(tl.int64) * q_s
    k_head = head // G
    if k_order is not None:
        k_order += b * ko_b + k_head * ko_h
    if k_position is not None:
        k_position += b * kp_b + k_head * kp_h
    if k_bias is not None:
        k_bias += b * kb_b + k_head * kb_h
    k += b * k_b + k_head * k_h
    v += b * v_b + k_head * v_h
    source = (k, v, k_s, v_s, k_order, k_position, k_bias, scale, softcap)
    mass = tl.zeros([TILE], tl.float32)
    tail, acc_tail = mass, mass
    if TAIL > 0:
        tail, acc_tail = _rows(q_rows, real, BODY, TAIL), tl.zeros([TILE, TAIL], tl.float32)
    query = (_rows(q_rows, real, 0, BODY), tail, limit, first, last)
    state = (tl.zeros([TILE, BODY], tl.float32), acc_tail, tl.full([TILE], float("-inf"), tl.float32), mass)

    lane = tl.arange(0, BLOCK)
    PARTS: tl.constexpr = RUN // BLOCK
    begin = tl.load(run_ptr + entry * (T + 1) + t)
    end = tl.load(run_ptr + entry * (T + 1) + t + 1)
    full = tl.load(run_full + entry * T + t).to(tl.int32) * PARTS
    for i in range(0, full):
        key_slot = tl.load(run_start + begin + i // PARTS).to(tl.int32) + i % PARTS * BLOCK + lane
        state = _absorb(state, query, source, key_slot, None, None, BODY, TAIL)
    for i in range(full, (end - begin).to(tl.int32) * PARTS):
        key_slot = tl.load(run_start + begin + i // PARTS).to(tl.int32) + i % PARTS * BLOCK + lane
        state = _absorb(state, query, source, key_slot, key_slot < k_slots, None, BODY, TAIL)
    if HAS_COLS:
        begin = tl.load(col_ptr + entry * (T + 1) + t)
        end = tl.load(col_ptr + entry * (T + 1) + t + 1)
        for i in range(0, (end - begin).to(tl.int32), BLOCK):
            key_slot = tl.load(col_idx + begin + i + lane, mask=begin + i + lane < end, other=k_slots).to(tl.int32)
            state = _absorb(state, query, source, key_slot, key_slot < k_slots, None, BODY, TAIL)
    stride, phase = 1, NONE
    if grid is not None:
        stride = tl.maximum(tl.load(grid + entry * 3), 1).to(tl.int32)
        phase = tl.where(tl.load(grid + entry * 3 + 2) != 0, tl.load(grid + entry * 3 + 1), NONE).to(tl.int32)
        begin, end = _steps(first, last, phase, stride)
        if k_order is not None or k_position is not None:  # slots are no positions, so all of them are looked at
            begin, end = _steps(0, k_slots - 1, phase, stride)
        for i in range(begin, end, BLOCK):
            n = i + lane
            state = _absorb(state, query, source, phase + n * stride, n < end, None, BODY, TAIL)
    if slash is not None:
        by_key = (k, v, k_s, v_s, None, None, k_bias, scale, softcap)
        every = tl.load(slash + entry * 2).to(tl.int32)
        period = tl.maximum(every, 1)
        delta = (tl.load(slash + entry * 2 + 1) % period + period).to(tl.int32)
        residue = tl.where(real & (every > 0), (position + 2 * period - delta) % period, NONE)
        current = tl.min(residue, 0)
        while current != NONE:  # once per residue class among the tile's rows; class-major rows have one or two
            mine = residue == current
            begin, end = _steps(first, tl.max(tl.where(mine, limit, -1), 0), current, period)
            for i in range(begin, end, BLOCK):
                n = i + lane
                key = current + n * period
                fresh = (n < end) & ((key < phase) | ((key - phase) % stride != 0))  # the grid has had the others
                state = _absorb(state, query, by_key, key, fresh, mine, BODY, TAIL)
            current = tl.min(tl.where(residue > current, residue, NONE), 0)

    acc, acc_tail, top, mass = state
    inside = (row >= 0) & (row < Sq)
    some = real & (mass > 0)
    mass = tl.where(some, mass, 1.0)
    to = out + b * out_b + h * out_h + row.to(tl.int64) * out_s
    _store(to, inside, some, acc / mass[:, None], 0, BODY)
    if TAIL > 0:
        _store(to, inside, some, acc_tail / mass[:, None], BODY, TAIL)
    if lse is not None:
        value = tl.where(some, (top + tl.log2(mass)) / LOG2E, float("-inf"))
        tl.store(lse + (b * H + h) * Sq + row, value, mask=inside)
