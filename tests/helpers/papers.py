"""Federated rounds of papers in NumPy, float64, beside those of `reference`.

Each class is its paper's equations for the linear regression of `reference`. `scale` is what the
rule makes of a mean over those that report, whose coefficients are p.
"""

import numpy as np

from tests.helpers.reference import Server, gradient


class Paper(Server):
    """An algorithm's state; a subclass says what a round does to it."""

    def __init__(self, clients, weights, dim, lr, start=None, **numbers):
        super().__init__("", clients, weights, dim, lr, start=start)
        # What each client keeps; at first zeros, or the first model.
        self.kept = np.tile(self.w, (len(clients), 1))
        self.__dict__.update(numbers)


class FedAvgM(Paper):
    velocity = 0.0

    def aggregate(self, rule, reporting, steps, scale, p):
        update = scale * p @ self.deltas(reporting, steps)
        self.velocity = self.momentum * self.velocity + update
        self.w = self.w + self.server_lr * self.velocity


class Adaptive(Paper):
    """Reddi et al.'s Algorithm 2."""

    m, v = 0.0, None

    def aggregate(self, rule, reporting, steps, scale, p):
        u = scale * p @ self.deltas(reporting, steps)
        self.m = self.b1 * self.m + (1 - self.b1) * u
        v = np.full_like(u, self.tau**2) if self.v is None else self.v
        self.v = {
            "adagrad": lambda: v + u**2,
            "yogi": lambda: v - (1 - self.b2) * u**2 * np.sign(v - u**2),
            "adam": lambda: self.b2 * v + (1 - self.b2) * u**2,
        }[self.kind]()
        self.w = self.w + self.server_lr * self.m / (np.sqrt(self.v) + self.tau)


class FedDyn(Paper):
    h = 0.0

    def direction(self, k, v, start, x, y):
        return gradient(v, x, y) - self.kept[k] + self.alpha * (v - start)

    def aggregate(self, rule, reporting, steps, scale, p):
        deltas = self.deltas(reporting, steps)
        self.kept[reporting] -= self.alpha * deltas
        self.h = self.h - self.alpha * self.shares(rule)[reporting] @ deltas
        # Those that a reading counts with w_t have no part of the step.
        self.w = self.w + scale * (p @ deltas - self.h / self.alpha)


class FedExP(Paper):
    def aggregate(self, rule, reporting, steps, scale, p):
        deltas = self.deltas(reporting, steps)
        mean = p @ deltas
        ratio = p @ np.sum(deltas**2, axis=1) / (2 * (mean @ mean + self.eps))
        self.w = self.w + scale * max(1.0, ratio) * mean


class Mifa(Paper):
    def aggregate(self, rule, reporting, steps, scale, p):
        self.kept[reporting] = self.deltas(reporting, steps)
        self.when_empty(rule)

    def when_empty(self, rule):
        self.w = self.w + self.server_lr * self.shares(rule) @ self.kept


class MimeLite(Paper):
    m = 0.0

    def direction(self, k, v, start, x, y):
        return (1 - self.momentum) * gradient(v, x, y) + self.momentum * self.m

    def aggregate(self, rule, reporting, steps, scale, p):
        deltas = self.deltas(reporting, steps)
        c = p @ np.array([gradient(self.w, *self.clients[k]) for k in reporting])
        self.m = self.momentum * self.m + (1 - self.momentum) * c
        self.w = self.w + scale * p @ deltas


class Plain(Paper):
    """FedAvg of clients that go another way."""

    def aggregate(self, rule, reporting, steps, scale, p):
        self.w = self.w + scale * p @ self.deltas(reporting, steps)


class FedSam(Plain):
    def direction(self, k, v, start, x, y):
        g = gradient(v, x, y)
        return gradient(v + self.rho * g / np.linalg.norm(g), x, y)


class Afl(Paper):
    def aggregate(self, rule, reporting, steps, scale, p):
        losses = np.array([self.loss(k, self.w) for k in reporting])
        mixture = p * np.exp(self.lambda_lr * self.kept[reporting, 0])
        mixture = mixture / mixture.sum()
        self.w = self.w + scale * mixture @ self.deltas(reporting, steps)
        self.kept[reporting, 0] += losses


def slope(objective, v, width=1e-6):
    """The gradient by central differences, to about 1e-9."""
    units = width * np.eye(len(v))
    return np.array([objective(v + e) - objective(v - e) for e in units]) / (2 * width)


class FedLC(Plain):
    """Of a linear model of C classes on d features: v is [C biases, d C weights]."""

    def direction(self, k, v, start, x, y):
        counts = np.bincount(self.clients[k][1], minlength=3)
        margin = self.tau * np.maximum(counts, 1e-8) ** -0.25

        def objective(v):
            logits = v[:3] + x @ v[3:].reshape(-1, 3) - margin
            return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y])

        return slope(objective, v)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class FedDF(Plain):
    """Of 3 tanh of the outputs of `FedLC`'s model; Adam is Kingma and Ba's, on all points."""

    def logits(self, v, x):
        return 3 * np.tanh(v[:3] + x @ v[3:].reshape(-1, 3))

    def direction(self, k, v, start, x, y):
        def objective(v):
            return -np.mean(np.log(softmax(self.logits(v, x))[np.arange(len(y)), y]))

        return slope(objective, v)

    def aggregate(self, rule, reporting, steps, scale, p):
        trained = self.w + self.deltas(reporting, steps)
        teacher = softmax(np.mean([self.logits(v, self.points) for v in trained], axis=0))

        def divergence(v):
            student = softmax(self.logits(v, self.points))
            return np.mean(np.sum(teacher * np.log(teacher / student), axis=1))

        student = p @ trained
        m = s = np.zeros_like(student)
        for t in range(1, self.steps + 1):
            g = slope(divergence, student)
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
            corrected = m / (1 - 0.9**t), s / (1 - 0.999**t)
            student = student - self.lr_server * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        self.w = self.w + scale * (student - self.w)


class Moon(Plain):
    """Of tanh features, [2, 3] inner weights, and 3 outer ones."""

    def features(self, v, x):
        return np.tanh(x @ v[:6].reshape(2, 3))

    def direction(self, k, v, start, x, y):
        def similarity(z, other):
            norms = np.linalg.norm(z, axis=1) * np.linalg.norm(other, axis=1)
            return np.exp(np.sum(z * other, axis=1) / norms / self.temperature)

        def objective(v):
            z = self.features(v, x)
            near = similarity(z, self.features(start, x))
            far = similarity(z, self.features(self.kept[k], x))
            return np.mean((z @ v[6:] - y) ** 2 - self.mu * np.log(near / (near + far)))

        return slope(objective, v)

    def aggregate(self, rule, reporting, steps, scale, p):
        trained = self.w + self.deltas(reporting, steps)
        self.w = self.w + scale * p @ (trained - self.w)
        self.kept[reporting] = trained
