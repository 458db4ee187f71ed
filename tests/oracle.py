"""WSLD from the paper's equations: float64, plain loops, no package code.

Probabilities are summed one by one and ``-log p_y`` is taken as
``-log1p(-(1 - p_y))`` with the other classes' probabilities added up, so tiny
cross-entropies keep their digits by other algebra than the package's.
"""
from __future__ import annotations

import cmath
import math


def softmax(logits: list[float], tau: float = 1.0) -> list[float]:
    top = max(logits)
    powers = [math.exp((z - top) / tau) for z in logits]
    total = math.fsum(powers)
    return [p / total for p in powers]


def cross_entropy(logits: list[float], target: list[float]) -> float:
    """``-sum_k target_k log p_k`` at temperature 1, in nats."""
    probs = softmax(logits)
    terms = []
    for k, share in enumerate(target):
        if share == 0:
            continue
        others = math.fsum(p for j, p in enumerate(probs) if j != k)
        if others < 0.5:
            terms.append(-share * math.log1p(-others))
        else:
            top = max(logits)
            lse = math.log(math.fsum(math.exp(z - top) for z in logits))
            terms.append(share * (lse + top - logits[k]))
    return math.fsum(terms)


def weight(student: list[float], teacher: list[float], target: list[float],
           eps: float = 0.0) -> float:
    ce_student = cross_entropy(student, target)
    ce_teacher = cross_entropy(teacher, target) + eps
    if ce_student == 0:
        return 0.0
    if ce_teacher == 0:
        return 1.0
    return -math.expm1(-ce_student / ce_teacher)


def soft_loss(student: list[float], teacher: list[float],
              tau: float) -> float:
    """``-tau^2 sum_k p(t/tau)_k log p(s/tau)_k``."""
    top = max(student) / tau
    lse = math.log(math.fsum(math.exp(z / tau - top) for z in student)) + top
    return tau**2 * math.fsum(
        p * (lse - z / tau) for p, z in zip(softmax(teacher, tau), student))


def row(student: list[float], teacher: list[float], target: list[float],
        tau: float, eps: float = 0.0, w: float | None = None,
        loss: str | dict = 'kl',
        transform: str | None = None) -> tuple[float, list[float]]:
    """Weighted soft-label loss of one sample and its gradient."""
    if w is None:
        w = weight(student, teacher, target, eps)
    if (loss, transform) == ('kl', None):
        gaps = zip(softmax(student, tau), softmax(teacher, tau))
        return (w * soft_loss(student, teacher, tau),
                [tau * w * (p - q) for p, q in gaps])
    settings = dict(type=loss) if isinstance(loss, str) else dict(loss)
    formula = dict(kl=cross, dkd=decoupled, nkd=normalized)[
        settings.pop('type')]
    label = target.index(max(target))

    def value(logits: list[complex]) -> complex:
        pair = transformed(logits, teacher, transform)
        return w * formula(*pair, label, tau, **settings)

    # The derivative is the imaginary part of a step too small to round.
    steps = [[z + 1e-30j * (j == k) for j, z in enumerate(student)]
             for k in range(len(student))]
    return value(student).real, [value(step).imag * 1e30 for step in steps]


def log_sum(logits: list[complex]) -> complex:
    top = max(z.real for z in logits)
    return top + cmath.log(sum(cmath.exp(z - top) for z in logits))


def logs(logits: list[complex]) -> list[complex]:
    total = log_sum(logits) if logits else 0
    return [z - total for z in logits]


def cross(student: list[complex], teacher: list[complex], label: int,
          tau: float) -> complex:
    pairs = zip(*(logs([z / tau for z in net]) for net in (student, teacher)))
    return -tau**2 * sum(cmath.exp(v) * u for u, v in pairs)


def decoupled(student: list[complex], teacher: list[complex], label: int,
              tau: float, alpha: float = 1.0, beta: float = 1.0) -> complex:
    """Zhao et al.: KL of the label against the rest, and within the rest."""
    parts = []
    for logits in (student, teacher):
        every = logs([z / tau for z in logits])
        rest = every[:label] + every[label + 1:]
        parts.append([*zip([every[label], log_sum(rest)], (alpha, alpha)),
                      *((z, beta) for z in logs(rest))] if rest else [])
    return tau**2 * sum(share * cmath.exp(v) * (v - u)
                        for (u, share), (v, _) in zip(*parts))


def normalized(student: list[complex], teacher: list[complex], label: int,
               tau: float, gamma: float = 1.5) -> complex:
    """Yang et al.: the label at temperature 1, the rest at tau."""
    rest = (net[:label] + net[label + 1:] for net in (student, teacher))
    return gamma * cross(*rest, label, tau) - cmath.exp(
        logs(teacher)[label]) * logs(student)[label]


def transformed(student: list[complex], teacher: list[float],
                transform: str | None) -> tuple[list[complex], list[complex]]:
    scores, sizes = [], []
    for logits in (student, teacher):
        mean = sum(logits) / len(logits)
        square = sum((z - mean)**2 for z in logits) / max(1, len(logits) - 1)
        sizes.append(cmath.sqrt(square))
        scores.append([(z - mean) / (1e-7 + sizes[-1]) for z in logits])
    if transform == 'spherical':
        return [z * sizes[1] for z in scores[0]], teacher
    return (scores[0], scores[1]) if transform else (student, teacher)


def entropy_weight(student: list[float], teacher: list[float]) -> float:
    """EA-KD: the teacher's entropy, and the student's over its bound."""
    h_s, h_t = (-math.fsum(p * math.log(p) for p in softmax(z, 3.0) if p > 0)
                for z in (student, teacher))
    return (h_t + h_t * h_s / math.log(len(student))) / 2


def one_hot(label: int, classes: int) -> list[float]:
    return [float(k == label) for k in range(classes)]


def label_gradients(student: list[float], teacher: list[float],
                    target: list[float],
                    tau: float) -> tuple[float, float]:
    """dL_ce and d(L_kd - L_ce) along the label; pair by pair of classes.

    ``p_k - y_k`` is ``sum_j (y_j p_k - y_k p_j)``, where the terms of j = k
    vanish, and a gap of two large probabilities is that of all the others.
    """
    probs = softmax(student)
    soft_s, soft_t = softmax(student, tau), softmax(teacher, tau)
    classes = range(len(target))
    a = math.fsum(
        target[k] * (target[j] * probs[k] - target[k] * probs[j])
        for k in classes for j in classes if j != k)
    gaps = []
    for k in classes:
        if min(soft_s[k], soft_t[k]) > 0.5:
            gap = math.fsum(soft_t[j] - soft_s[j] for j in classes if j != k)
        else:
            gap = soft_s[k] - soft_t[k]
        gaps.append(target[k] * gap)
    return a, tau * math.fsum(gaps) - a


def is_regularization(student: list[float], teacher: list[float],
                      target: list[float], tau: float) -> bool:
    a, b = label_gradients(student, teacher, target, tau)
    return abs(b) > abs(a)


def kl(p: list[float], log_p: list[float], log_q: list[float]) -> float:
    return math.fsum(
        x * (u - v) for x, u, v in zip(p, log_p, log_q) if x > 0)


def mean_prediction(runs: list[list[float]]) -> list[float]:
    """Log of the runs' normalised geometric mean."""
    means = [math.fsum(z) / len(runs) for z in zip(*runs)]
    top = max(means)
    total = math.fsum(math.exp(m - top) for m in means)
    return [m - top - math.log(total) for m in means]


def decompose(runs: list[list[float]], target: list[float],
              reference: list[list[float]] | None = None) -> dict[str, float]:
    """Every divergence of the decomposition by its definition, in nats.

    ``runs`` and ``reference`` hold a sample's log-probabilities by run.
    """
    log_y = [math.log(y) if y > 0 else 0.0 for y in target]
    mean = mean_prediction(runs)
    direct = mean_prediction(reference) if reference else mean
    return dict(
        error=math.fsum(
            -y * z for run in runs for y, z in zip(target, run)) / len(runs),
        noise=-math.fsum(y * u for y, u in zip(target, log_y)),
        bias=kl(target, log_y, direct),
        variance=math.fsum(
            kl([math.exp(m) for m in mean], mean, run)
            for run in runs) / len(runs),
        distillation=math.fsum(
            y * (u - v) for y, u, v in zip(target, direct, mean)))
