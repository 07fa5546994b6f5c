"""proto"""
import torch
from torch import Tensor
from ecsfusion.pid.linear import TrainingSets, tells_more
from ecsfusion.pid.cholesky import factored, solved

import os
ITERATIONS = int(os.environ.get('IT','15'))
FIRST=float(os.environ.get('FIRST','0.3'))
MAX_ROWS=8192
PRIOR_ROWS=1.0
TINY=1e-30

def confusion_readouts(logits, sets, log_prior):
    """logits (2,N,C)"""
    number = sets.num_folds
    half = _one(logits[1], sets.halves(), log_prior)
    if not tells_more([logits[1]], [half], sets.labels, log_prior):
        return []
    return [torch.stack([_one(logits[0], sets.folds(), log_prior), half])]

def _one(logits, sets, log_prior):
    x = (logits - logits.mean(1, keepdim=True)).double()
    C = x.shape[1]
    out = torch.zeros_like(logits)
    prior = log_prior.double().exp()
    for t in range(len(sets.counts)):
        m = sets.member[:, t].bool().nonzero().squeeze(1)
        r = (sets.reader[0] == t)
        m = m[::max(1, -(-len(m)//MAX_ROWS))]
        z = x[m]; y = sets.labels[m]
        oh = torch.nn.functional.one_hot(y, C).double()
        center = z.mean(0); z = z - center
        S = z.T @ z / len(z)
        S.diagonal().add_(1e-3*S.diagonal().mean())
        n = oh.sum(0)
        T = (1-FIRST)*torch.eye(C, dtype=z.dtype) + FIRST*prior
        R = oh
        for it in range(ITERATIONS):
            n = R.sum(0).clamp_min(.5)
            M = (R.T @ z)/n[:, None]
            pi = n/n.sum()
            if it:
                T = (R.T @ oh + PRIOR_ROWS*prior)/(n[:, None]+PRIOR_ROWS)
            W = S - (M*pi[:, None]).T @ M
            W.diagonal().add_(1e-3*S.diagonal().mean())
            A = torch.linalg.solve(W, M.T)
            b = pi.log() - .5*(M.T*A).sum(0)
            R = torch.softmax(z @ A + b + T.clamp_min(TINY).log()[:, y].T, 1)
        q = torch.softmax((x[r]-center) @ A + b, 1) @ T
        out[r] = (q.clamp_min(TINY).log() - log_prior).to(out.dtype)
    return out
