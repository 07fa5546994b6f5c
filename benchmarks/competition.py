"""Effective competitive strength: which modality learns a class first when they are trained together.

It is defined on the model of Huang et al. 2022 (arXiv 2203.12221), on which the argument of arXiv 2509.20840 rests.
Modality r shows class j along one direction of its input, and every class has a few neurons per modality:

    f_j(x) = sum_r sum_l sigma(<w_{j,l,r}, x^r>),

It is trained by gradient descent on the cross-entropy of f, from small initial weights. While the logits are small, the
neurons of each class and modality grow independently, dG/dt ~ d G^(q-1), and diverge at a time ~ 1 / (d G(0)^(q-2)).
The modality whose neurons are first fits the class, and no gradient is left for the other.

`bimodal.py` trains this model, and `competitive_strength.py` measures how well the strength predicts the outcome.

Of a real model neither factor is known. Its stand-in is the information of a modality's embeddings about the label,
which every probe logs as `mutual_information_MODALITY`; the difference of two modalities' information is that of their
uniqueness (I1 - I2 = U1 - U2), by which the rules name a leader. It says what can be read off the embeddings, not how
fast the encoder learns: `information_proxy.py` shows where that is enough and where it is not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ecsfusion.data.values import check_values
from ecsfusion.pid.checks import is_number, is_whole


def smoothed_relu(x: Tensor, order: int = 3, threshold: float = 0.5) -> Tensor:
    """0 for x <= 0, x^q / (q b^(q-1)) up to b, x - (1 - 1/q) b beyond; q = `order`, b = `threshold`."""
    bent = x.clamp(0.0, threshold) ** order / (order * threshold ** (order - 1))
    return bent + (x - threshold).clamp_min(0.0)


def competitive_strength(
    alignment: Tensor, signal: Tensor, num_samples: int, order: int = 3, threshold: float = 0.5
) -> Tensor:
    """ECS_{j,r} = G_{j,r} d_{j,r}^(1/(q-2)) of every class j and modality r; the larger one wins the class.

    Args:
        alignment: (..., C, M, L), <w_{j,l,r}, M_j^r>: how far each of the L neurons points along its class.
        signal: (..., C, M), the sum over the samples of class j in which modality r is sufficient of (z_j^r)^q.
        num_samples: of all classes together.
        order: q of the activation, at least 3.
        threshold: b of the activation, where it becomes linear.

    Returns:
        (..., C, M): G = the largest positive alignment times the (q-2)-th root of d = signal / (n b^(q-1)).

    Raises:
        TypeError, ValueError: an order under 3, for which nothing blows up; shapes that do not match; what is not
            finite, or a signal that is negative.
    """
    if not is_whole(order) or not 3 <= order <= 1000:
        raise ValueError(
            f"order is {order!r}; competition by blow-up needs an activation of whole order 3 or more"
        )
    for name, number in (("num_samples", num_samples), ("threshold", threshold)):
        if not is_number(number) or not 0 < number < math.inf or number > 2**63:
            raise ValueError(f"{name} must be a positive number, got {number!r}")
    for name, values in (("alignment", alignment), ("signal", signal)):
        if not isinstance(values, Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"{name} must be a floating point tensor, got {kind}")
        check_values(values, name)
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} must be finite, found NaN or infinite values")
    if bool((signal < 0).any()):
        raise ValueError("signal must not be negative: it is a sum of powers of what is positive")
    if alignment.ndim < 1 or alignment.shape[-1] == 0 or alignment.shape[:-1] != signal.shape:
        raise ValueError(
            "alignment must be (..., C, M, L) and signal (..., C, M), "
            f"got {tuple(alignment.shape)} and {tuple(signal.shape)}"
        )
    # By logarithms: the powers leave the range of the numbers before the result does.
    growth = signal.double().log() - math.log(num_samples) - (order - 1) * math.log(threshold)
    strength = alignment.amax(-1).clamp_min(0.0).double() * (growth / (order - 2)).exp()
    wide = torch.promote_types(alignment.dtype, signal.dtype)
    if (
        float(strength.amax() if strength.numel() else 0.0) > torch.finfo(wide).max
        or not strength.isfinite().all()
    ):
        raise ValueError(
            f"alignment and signal are too large for the strength in {wide}; give float64, or scale them"
        )
    return strength.to(wide)
