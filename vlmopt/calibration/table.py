"""Describe what a calibration found: trends, sinks, heads, attention to generated text."""

from __future__ import annotations

from vlmopt.attention_fix import HeadProfile, IATProfile, SinkProfile

from .profile import Profile


def table(profile: Profile, name: str) -> str:
    """Write the tables of a profile.

    sigma > 0: late places (below, right, later frames) get more attention, exp(sigma) times as much at the end.
    """
    lines = [f"{name}: {profile.data}"]
    raster = [p for p in profile.debias if p.axes == "raster"]
    axes = {(p.host, p.layer): p.sigma for p in profile.debias if p.axes == "thw"}
    if raster:
        lines.append(f"{'host':<14} {'layer':>5}  {'sigma, standard error':<23} {'t, y, x':<20} samples")
    for p in raster:
        parts = ", ".join(f"{value:+.2f}" for value in axes[p.host, p.layer])
        lines.append(f"{p.host:<14} {p.layer:>5}  {p.slopes:<23} {parts:<20} {p.samples}")
    lines += [f"warning  {doubt}" for p in raster for doubt in p.doubts]
    if profile.sinks is not None:
        lines += sink_lines(profile.sinks)
    if profile.heads is not None:
        lines += head_lines(profile.heads)
    if profile.iat is not None:
        lines += iat_lines(profile.iat)
    return "\n".join(lines)


def sink_lines(sinks: SinkProfile) -> list[str]:
    stats = sinks.stats
    if sinks.nothing is not None:
        text = f"sinks    none: {sinks.nothing}"
    else:
        held = [stats["per_image"][str(layer)] for layer in stats["layers"]]
        ratios = [stats["attention_ratio"][str(layer)] for layer in stats["layers"]]
        text = (
            f"sinks    dims {', '.join(map(str, sinks.dims))} of the {stats['origin']}, massive before layers "
            f"{sinks.band[0]} to {sinks.band[1] - 1} (by {stats['band_by']}), tau {sinks.tau:.1f}\n"
            f"         visual sinks before {len(held)} layers from {sinks.first_layer} on: {sum(held) / len(held):.1f} "
            f"per image, {sum(ratios) / len(ratios):.1f} times the attention of other tokens, |cosine| "
            f"{stats['cosine']:.2f}"
        )
    return [f"{text}; {sinks.samples} images", *(f"warning  sinks: {doubt}" for doubt in stats["warnings"])]


def head_lines(heads: HeadProfile) -> list[str]:
    stats = heads.stats
    masses = [mass for layer in stats["layers"] for mass in heads.visual_mass[layer]]
    text = (
        f"heads    {min(masses):.2f} to {max(masses):.2f} of their attention on the image, mean "
        f"{sum(masses) / len(masses):.2f}; {len(stats['looking'])} of {len(masses)} look at it in most rows"
    )
    out = [f"{text}; {heads.samples} images"]
    if (rank := stats["rank_correlation"]) is not None:
        out.append(f"         rank correlation of attention and divergence {rank:.2f}")
    if "agreement" in stats:
        same = ", ".join(f"{name} {value:.2f}" for name, value in stats["agreement"].items())
        out.append(f"         same heads in two halves of the images (Jaccard index): {same}")
    return out + [f"warning  heads: {doubt}" for doubt in stats["warnings"]]


def iat_lines(iat: IATProfile) -> list[str]:
    words, before = iat.stats["words"], iat.stats["tokens_before"]
    more = (f"{iat.real[layer] / max(iat.hallucinated[layer], 1e-30):.2f}" for layer in iat.stats["layers"])
    return [
        f"iat      {words['hallucinated']} hallucinated and {words['real']} real objects named, behind "
        f"{before['hallucinated']:.1f} and {before['real']:.1f} tokens; {iat.samples} captions",
        f"         attention to generated text, real over hallucinated, by layer: {' '.join(more)}",
        *(f"warning  iat: {doubt}" for doubt in iat.stats["warnings"]),
    ]
