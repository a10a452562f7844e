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


def gradient_weights(num_steps, lr, momentum, mu):
    """The a_j of w_t - w = lr sum_j a_j g_j after FedNova's local steps, one unit gradient each."""
    weights = np.zeros(num_steps)
    for j in range(num_steps):
        velocity = distance = 0.0
        for step in range(num_steps):
            velocity = momentum * velocity + (step == j)
            distance = distance + velocity - lr * mu * distance
        weights[j] = distance
    return weights


class Server:
    """The state of a whole federation under one algorithm.

    The model `w` is [dim], or [C, dim] of IFCA, whose first models are `start`.
    """

    def __init__(
        self,
        algorithm,
        clients,
        weights,
        dim,
        lr,
        server_lr=1.0,
        mu=0.0,
        *,
        momentum=0.0,
        q=0.0,
        start=None,
    ):
        self.algorithm, self.clients, self.weights = algorithm, clients, np.asarray(weights, float)
        self.lr, self.server_lr, self.mu = lr, server_lr, mu
        self.momentum, self.q = momentum, q
        self.w = np.zeros(dim) if start is None else np.array(start, np.float64)
        self.c = np.zeros(dim)
        self.c_k = np.zeros((len(clients), dim))

    def loss(self, k, w):
        """The mean loss of client k at w."""
        x, y = self.clients[k]
        return np.mean((x @ w[:-1] + w[-1] - y) ** 2)

    def cluster(self, k):
        """The model of IFCA that fits client k best."""
        return int(np.argmin([self.loss(k, w) for w in self.w]))

    def train(self, k, steps, start=None):
        """The model of client k after its local steps from `start`, by default w."""
        x, y = self.clients[k]
        start = self.w if start is None else start
        v, velocity = start.copy(), np.zeros_like(start)
        for rows in steps:
            g = self.direction(k, v, start, x[rows], y[rows])
            if self.algorithm == "fednova":
                velocity = self.momentum * velocity + g
                g = velocity + self.mu * (v - start)
            v = v - self.lr * g
        return v

    def direction(self, k, v, start, x, y):
        """What a local step of client k from v goes against; it began at `start`."""
        g = gradient(v, x, y)
        if self.algorithm == "fedprox":
            g = g + self.mu * (v - start)
        if self.algorithm.startswith("scaffold"):
            g = g - self.c_k[k] + self.c
        return g

    def shares(self, rule):
        """The fixed shares p_k of all clients."""
        if rule == "uniform":
            return np.full(len(self.weights), 1 / len(self.weights))
        return self.weights / self.weights.sum()

    def round(self, rule, ids, mask, reports, inclusion, work, epochs, batch_size, order):
        """One round; returns the clients that reported, as slots."""
        if self.algorithm == "fedsgd":
            epochs, batch_size = 1, None
        slots, steps = [], []
        for slot, k in enumerate(ids):
            rows = blocks(len(self.clients[k][1]), epochs, batch_size, order)
            rows = rows[: int(np.floor(work[slot] * len(rows)))]
            if mask[slot] and reports[slot] and rows:
                slots.append(slot)
                steps.append(rows)
        if not slots:
            self.when_empty(rule)
            return slots
        n, reporting = self.weights.sum(), [ids[slot] for slot in slots]
        n_k = self.weights[reporting]
        a = {
            "selected": lambda: n_k / n_k.sum(),
            "all_clients": lambda: n_k / n,
            "uniform": lambda: np.full(len(slots), 1 / len(slots)),
            "unbiased": lambda: n_k / n / np.array([inclusion[slot] for slot in slots]),
        }[rule]()
        # p is a mean over those that report, and the scale what the rule makes of it.
        self.aggregate(rule, reporting, steps, a.sum(), a / a.sum())
        return slots

    def when_empty(self, rule):
        """The server's step where nobody reports: none."""

    def deltas(self, reporting, steps):
        """What the local steps of these clients change of w."""
        trained = [self.train(k, rows) for k, rows in zip(reporting, steps, strict=True)]
        return np.array(trained) - self.w

    def aggregate(self, rule, reporting, steps, scale, p):
        """The server's step."""
        if self.algorithm == "ifca":
            self.w = self._clusters(reporting, steps, scale, p)
            return
        deltas = self.deltas(reporting, steps)
        step = scale * p @ deltas
        if self.algorithm == "fednova":
            norms = np.array(
                [
                    np.abs(gradient_weights(len(rows), self.lr, self.momentum, self.mu)).sum()
                    for rows in steps
                ]
            )
            step = scale * (p @ norms) * (p @ (deltas / norms[:, None]))
        if self.algorithm == "qfedavg":
            loss = np.array([self.loss(k, self.w) for k in reporting])
            squares = (deltas**2).sum(axis=1) / self.lr**2
            h = self.q * loss ** (self.q - 1) * squares + loss**self.q / self.lr
            step = scale * (p @ (loss[:, None] ** self.q * deltas / self.lr)) / (p @ h)
        if self.algorithm.startswith("scaffold"):
            self._renew_controls(rule, reporting, steps, deltas)
        self.w = self.w + self.server_lr * step

    def _clusters(self, reporting, steps, scale, p):
        """IFCA's models after a round."""
        clusters = np.array([self.cluster(k) for k in reporting])
        moved = self.w.copy()
        for cluster in set(clusters):
            inside = np.flatnonzero(clusters == cluster)
            start = self.w[cluster]
            deltas = [self.train(reporting[i], steps[i], start) - start for i in inside]
            moved[cluster] = start + scale * (p[inside] / p[inside].sum()) @ np.array(deltas)
        return moved

    def _renew_controls(self, rule, reporting, steps, deltas):
        """SCAFFOLD's c_k and c, of the round that ends."""
        shares = self.shares(rule)
        change = np.zeros_like(self.c)
        for k, rows, delta in zip(reporting, steps, deltas, strict=True):
            renewed = self.c_k[k] - self.c - delta / (len(rows) * self.lr)
            if self.algorithm == "scaffold_1":
                renewed = gradient(self.w, *self.clients[k])
            change = change + shares[k] * (renewed - self.c_k[k])
            self.c_k[k] = renewed
        self.c = self.c + change
