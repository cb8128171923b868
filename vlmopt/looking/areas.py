"""Choose an area of a heat map: the best connected components of its highest pixels, or the best sliding window."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Heat = np.ndarray[Any, np.dtype[np.float32]]

CLOSE = 0.02  # of the range of a map: means of windows that count as equal
SIDES = (0.25, 0.375, 0.5, 0.625, 0.75)  # of windows, as shares of the image's


def components(heat: Heat, share: float, most: int) -> Mask:
    """Return the best connected components of the highest pixels.

    Args:
        heat: [h, w], NaN where there is no value.
        share: of the pixels with a value; those at or above their (1 - share) quantile are high, ties among them.
        most: components of high pixels that stay, by the sum of the heat inside, not by area. Pixels are neighbours
            along the four sides.

    Returns:
        Bool [h, w]; all False where no pixel has a value.
    """
    known = ~np.isnan(heat)
    if not known.any():
        return known
    values = np.nan_to_num(heat.astype(np.float64))
    high = known & (values >= np.quantile(values[known], 1 - share))
    _, labels, _, _ = cv2.connectedComponentsWithStats(high.astype(np.uint8), connectivity=4)
    sums = np.bincount(labels.ravel(), weights=values.ravel())
    order = 1 + np.argsort(-sums[1:], kind="stable")
    return np.isin(labels, order[:most])


def window(heat: Heat) -> Mask:
    """Return the window, of the image's aspect, whose mean stands out most from those around it.

    Of every size in `SIDES` the place with the largest mean is taken, the middle one of those as good; sizes are
    compared by that mean less the mean of the windows half a side away. Pixels without a value count as 0.

    Returns:
        Bool [h, w]; all False where no pixel has a value.
    """
    mask = np.zeros(heat.shape, dtype=bool)
    if np.isnan(heat).all():
        return mask
    table = cv2.integral(np.nan_to_num(heat.astype(np.float64)))
    best, chosen = -np.inf, (0, 0, 0, 0)
    for side in SIDES:
        h, w = (max(1, round(side * whole)) for whole in heat.shape)
        means = (table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w]) / (h * w)
        y, x = middle_of_best(means)
        rows, columns = (
            np.unique(np.clip([at - step, at, at + step], 0, last - 1))
            for at, step, last in ((y, max(h // 2, 1), means.shape[0]), (x, max(w // 2, 1), means.shape[1]))
        )
        around = means[np.ix_(rows, columns)]
        others = max(around.size - 1, 1)
        merit = float(means[y, x] - (around.sum() - means[y, x]) / others)
        if merit > best:
            best, chosen = merit, (y, x, y + h, x + w)
    mask[chosen[0] : chosen[2], chosen[1] : chosen[3]] = True
    return mask


def middle_of_best(means: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[int, int]:
    """Return (row, column) of a best place, the middle one of many: a window may be wider than what is hot."""
    high = means.max()
    places = np.argwhere(means >= high - CLOSE * (high - means.min()))
    y, x = places[np.square(places - places.mean(0)).sum(1).argmin()]
    return int(y), int(x)


def box_of(mask: Mask) -> Box | None:
    """Return the smallest box around the pixels of a mask; None where there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
