"""The robust rules in NumPy's float64, from the papers: one row of `d` for each client.

Non-finite numbers follow the rules' own words: a NaN is plus infinity coordinate by coordinate,
and a row that is not finite is infinitely far from all others.
"""

import numpy as np


def trimmed_mean(d, share):
    cut = int(np.floor(share * len(d) + 1e-9))
    d = np.sort(np.where(np.isnan(d), np.inf, d), axis=0)
    return d[cut : len(d) - cut].mean(axis=0)


def median(d):
    d = np.sort(np.where(np.isnan(d), np.inf, d), axis=0)
    n = len(d)
    low, high = d[(n - 1) // 2], d[n // 2]
    with np.errstate(invalid="ignore"):
        return np.where(low == high, low, (low + high) / 2)


def apart(x, y):
    """|x - y|, infinite where either is not finite."""
    finite = np.isfinite(x).all() and np.isfinite(y).all()
    return np.linalg.norm(x - y) if finite else np.inf


def scores(d, f):
    n, out = len(d), []
    for i in range(n):
        others = sorted(apart(d[i], d[j]) ** 2 for j in range(n) if j != i)
        out.append(sum(others[: n - f - 2]))
    return np.array(out)


def multi_krum(d, f, keep, ids):
    if len(d) <= 2 * f + 2:
        return np.zeros(d.shape[1])
    s = scores(d, f)
    chosen = sorted(range(len(d)), key=lambda i: (s[i], ids[i]))[: min(keep, len(d) - f)]
    if not np.isfinite(s[chosen]).all():
        return np.full(d.shape[1], np.nan)
    return d[chosen].mean(axis=0)


def geometric_median(d, weights, steps, smoothing=1e-6):
    finite = np.isfinite(d).all(axis=1)
    d, a = d[finite], np.asarray(weights, float)[finite]
    if not len(d):
        return np.full(d.shape[1], np.nan)
    v = (a[:, None] * d).sum(axis=0) / a.sum()
    for _ in range(steps):
        b = a / np.maximum(smoothing, np.linalg.norm(d - v, axis=1))
        v = (b[:, None] * d).sum(axis=0) / b.sum()
    return v


def centered_clipping(d, radius, steps):
    v = np.zeros(d.shape[1])
    for _ in range(steps):
        moves = np.zeros_like(v)
        for x in d:
            length = apart(x, v)
            if np.isfinite(length):
                moves += (x - v) * (min(1, radius / length) if length else 1)
        v = v + moves / len(d)
    return v


def norm_bounded(d, weights, radius):
    zero, total = np.zeros(d.shape[1]), np.zeros(d.shape[1])
    for x, a in zip(d, weights, strict=True):
        length = apart(x, zero)
        if np.isfinite(length):
            total += a * x * (min(1, radius / length) if length else 1)
    return total / np.sum(weights)


def mixed(d, f, ids):
    """The rows of NNM."""
    rows, n = [], len(d)
    for i in range(n):
        order = sorted(range(n), key=lambda j: (apart(d[i], d[j]), ids[j]))[: n - f]
        nearest = d[order]
        bad = not np.isfinite(nearest).all() or not np.isfinite(d[i]).all()
        rows.append(np.full(d.shape[1], np.nan) if bad else nearest.mean(axis=0))
    return np.array(rows)
