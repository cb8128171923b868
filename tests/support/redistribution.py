"""Moving attention from sinks to other visual tokens: the rule, readable, and from partial attentions alone.

See What You Are Told: Visual Attention Sink in Large Multimodal Models (arXiv 2503.03321).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmopt.attention_fix.visual_sink import gate

from .partial_attention import Part, masses, remix


def redistribute(
    a: Tensor,
    image: Tensor,
    sink: Tensor,
    recycle: float = 0.6,
    min_nonsink_ratio: float = 0.5,
    min_visual_mass: float = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The edit of whole rows, as readable as can be; what `VisualSink` is tested against.

    Args:
        a: attention [..., K]. image, sink: Bool, broadcast against it.

    Returns:
        a' [..., K], and by row [...]: "open" Bool, "visual_mass" m_I and "moved_mass" Omega.
    """
    visual_sink, nonsink = image & sink, image & ~sink
    m_sink, m_visual_sink, m_nonsink = ((a * keys).sum(-1) for keys in (sink, visual_sink, nonsink))
    wide_open = gate(m_visual_sink, m_nonsink, min_nonsink_ratio, min_visual_mass) & visual_sink.any(-1)
    moved = (recycle * m_sink).where(wide_open, 0.0)
    factor = 1 + (moved / m_nonsink).where(wide_open, 0.0)
    edited = torch.where(sink, a * (1 - recycle), torch.where(nonsink, a * factor[..., None], a))
    stats = {"open": wide_open, "visual_mass": m_visual_sink + m_nonsink, "moved_mass": moved}
    return torch.where(wide_open[..., None], edited, a), stats


def redistribute_merge(
    rest: Part,
    nonsink: Part,
    sink: Part,
    visual_sink_lse: Tensor,
    recycle: float = 0.6,
    min_nonsink_ratio: float = 0.5,
    min_visual_mass: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """The same from three partial attentions, for kernels that return logsumexps: no weights are ever written down.

    Args:
        rest, nonsink, sink: (o [B, H, R, Dv], lse [B, H, R]) over keys that are neither, visual keys that are not
            sinks, and all sinks. visual_sink_lse: [B, H, R] over the visual ones of the sinks, which the gate asks for.

    Returns:
        o' [B, H, R, Dv], and Bool[B, H, R] where attention moved.
    """
    lses = [lse for _, lse in (rest, nonsink, sink)]
    _, m_nonsink, m_sink = masses(lses)
    m_visual_sink = m_sink * (visual_sink_lse - sink[1]).exp()  # NaN without any sink, which opens no gate
    wide_open = gate(m_visual_sink, m_nonsink, min_nonsink_ratio, min_visual_mass) & (m_visual_sink > 0)
    more = (1 + recycle * m_sink / m_nonsink).where(wide_open, 1.0)
    less = torch.ones_like(more).masked_fill(wide_open, 1 - recycle)
    return remix([rest, nonsink, sink], [1.0, more, less]), wide_open
