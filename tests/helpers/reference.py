"""Federated rounds in plain NumPy loops, float64: linear regression with squared loss.

Shares no code with the package. The model is a vector [w, b].
"""

import numpy as np


def gradient(v, x, y):
    """Of the mean squared error over the rows of x."""
    error = x @ v[:-1] + v[-1] - y
    return np.concatenate([2 * error @ x, [2 * error.sum()]]) / len(y)


def blocks(n, epochs, batch_size, order):
    """The rows of each local step, without shuffling."""
    size = n if batch_size is None else batch_size
    one_pass = [np.arange(start, min(start + size, n)) for start in range(0, n, size)] if n else []
    if order == "epochs":
        return one_pass * epochs
    return [rows for rows in one_pass for _ in range(epochs)]


class Server:
    """The state of a whole federation under one algorithm."""

    def __init__(self, algorithm, clients, weights, dim, lr, server_lr=1.0, mu=0.0):
        self.algorithm, self.clients, self.weights = algorithm, clients, np.asarray(weights, float)
        self.lr, self.server_lr, self.mu = lr, server_lr, mu
        self.w = np.zeros(dim)
        self.c = np.zeros(dim)
        self.c_k = np.zeros((len(clients), dim))

    def train(self, k, steps):
        x, y = self.clients[k]
        v = self.w.copy()
        for rows in steps:
            g = gradient(v, x[rows], y[rows])
            if self.algorithm == "fedprox":
                g = g + self.mu * (v - self.w)
            if self.algorithm == "scaffold":
                g = g - self.c_k[k] + self.c
            v = v - self.lr * g
        return v

    def round(self, rule, ids, mask, reports, inclusion, work, epochs, batch_size, order):
        """One round; returns the clients that reported, as slots."""
        n = self.weights.sum()
        if self.algorithm == "fedsgd":
            epochs, batch_size = 1, None
        deltas, slots, new_c_k = [], [], {}
        for slot, k in enumerate(ids):
            steps = blocks(len(self.clients[k][1]), epochs, batch_size, order)
            steps = steps[: int(np.floor(work[slot] * len(steps)))]
            if not (mask[slot] and reports[slot] and steps):
                continue
            v = self.train(k, steps)
            deltas.append(v - self.w)
            slots.append(slot)
            new_c_k[k] = self.c_k[k] - self.c + (self.w - v) / (len(steps) * self.lr)
        if not slots:
            return slots
        n_k = np.array([self.weights[ids[slot]] for slot in slots])
        if rule == "selected":
            a = n_k / n_k.sum()
        elif rule == "all_clients":
            a = n_k / n
        elif rule == "uniform":
            a = np.full(len(slots), 1 / len(slots))
        elif rule == "unbiased":
            a = n_k / n / np.array([inclusion[slot] for slot in slots])
        step = sum(weight * delta for weight, delta in zip(a, deltas, strict=True))
        self.w = self.w + self.server_lr * step
        if self.algorithm == "scaffold":
            p = np.full(len(self.weights), 1 / len(self.weights))
            p = p if rule == "uniform" else self.weights / n
            for k, value in new_c_k.items():
                self.c = self.c + p[k] * (value - self.c_k[k])
            for k, value in new_c_k.items():
                self.c_k[k] = value
        return slots
