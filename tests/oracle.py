"""WSLD from the paper's equations: float64, plain loops, no package code.

Probabilities are summed one by one and ``-log p_y`` is taken as
``-log1p(-(1 - p_y))`` with the other classes' probabilities added up, so tiny
cross-entropies keep their digits by other algebra than the package's.
"""
from __future__ import annotations

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
        tau: float, eps: float = 0.0) -> tuple[float, list[float]]:
    """Weighted soft-label loss of one sample and its gradient."""
    w = weight(student, teacher, target, eps)
    gradient = [
        tau * w * (p - q)
        for p, q in zip(softmax(student, tau), softmax(teacher, tau))
    ]
    return w * soft_loss(student, teacher, tau), gradient


def one_hot(label: int, classes: int) -> list[float]:
    return [float(k == label) for k in range(classes)]
