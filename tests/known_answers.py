"""What the tests of `fast_pid` by held-out posteriors share."""

import torch

ORDER = ("I1", "I2", "I12", "R", "U1", "U2", "S")


def values(pid):
    """I1, I2, I12, R, U1, U2, S in bits, (7,) float64."""
    joint = pid.joint_mutual_information.reshape(1)
    return torch.cat(
        [pid.mutual_information, joint, pid.redundancy.reshape(1), pid.unique, pid.synergy.reshape(1)]
    )


def intervals(pid):
    """Of R, U1, U2, S: (4, 2)."""
    return torch.cat([pid.redundancy_interval[None], pid.unique_interval, pid.synergy_interval[None]])


def widths(pid):
    """Of the intervals of R, U1, U2, S: (4,)."""
    return (intervals(pid)[:, 1] - intervals(pid)[:, 0]).clamp_min(1e-12)


def true_values(truth):
    """The seven values of a `Truth`, (7,) float64."""
    return torch.tensor([truth.I1, truth.I2, truth.I12, *truth.atoms], dtype=torch.float64)


def assert_consistent(pid):
    """Finite, not negative, in the order that information has, inside their own intervals."""
    for part in (pid, pid.held_out):
        single, joint, synergy = part.mutual_information, part.joint_mutual_information, part.synergy
        for value in (part.redundancy, part.unique, synergy, single, joint):
            assert torch.isfinite(value).all()
            assert (value >= 0).all()
        torch.testing.assert_close(part.redundancy.unsqueeze(-1) + part.unique, single, rtol=0, atol=1e-9)
        torch.testing.assert_close(part.redundancy + part.unique.sum(-1) + synergy, joint, rtol=0, atol=1e-9)
        assert (joint >= single.amax(-1) - 1e-12).all()
    assert (pid.mutual_information >= pid.held_out.mutual_information).all()
    for value, ends in (
        (pid.redundancy, pid.redundancy_interval),
        (pid.unique, pid.unique_interval),
        (pid.synergy, pid.synergy_interval),
    ):
        assert torch.isfinite(ends).all()
        assert (ends[..., 0] >= 0).all()
        assert (ends[..., 0] <= value).all()
        assert (value <= ends[..., 1]).all()
    assert (pid.enough_samples >= 0).all()
    assert torch.isfinite(pid.enough_samples).all()
