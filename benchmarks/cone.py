"""The BROJA problem as an exponential cone program, solved by Clarabel: the independent exact answer.

Makkeh et al. 2017, "Bivariate partial information: an optimization perspective": with q the cells of Q and t >= q
log(q / sum_y q), minimize sum t subject to Q's two pair marginals. Times are processor time: `seconds` from
the table to the answer, `solver_seconds` of Clarabel alone (equilibration, factorizations, iterations), without
building the program.
"""

import importlib.util
import multiprocessing
import multiprocessing.connection
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True)
class ConeSolution:
    conditional_entropy: float
    """max H_Q(Y | X1, X2) in bits; nan when the time was over."""
    seconds: float
    solver_seconds: float
    status: str


def solve_cone(table: NDArray[np.float64], seconds: float, accuracy: float = 1e-6) -> ConeSolution:
    """Solve one table (K1, K2, C) to `accuracy` (gap, feasibility) in a process that is ended after `seconds`."""
    if importlib.util.find_spec("clarabel") is None:
        raise ImportError("the cone solver is not installed: pip install clarabel")
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_solve, args=(sender, table, accuracy))
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return receiver.recv()
        return ConeSolution(float("nan"), seconds, seconds, "time is over")
    except EOFError:
        return ConeSolution(float("nan"), seconds, seconds, "the solver died, out of memory perhaps")
    finally:
        process.kill()
        process.join()


def _solve(
    answer: multiprocessing.connection.Connection, table: NDArray[np.float64], accuracy: float
) -> None:
    import clarabel

    begin = time.process_time()
    p = table / table.sum()
    p1y, p2y = p.sum(1), p.sum(0)
    i, j, y = np.nonzero((p1y[:, None, :] > 0) & (p2y[None, :, :] > 0))
    cells = len(i)
    rows, columns, classes = p.shape
    one, number = np.ones(cells), np.arange(cells)
    # Variables: t (cells), q (cells). Zero cone: the marginals that have mass. Exponential cones: (-t, q, sum_y q).
    first = sparse.csr_matrix((one, (i * classes + y, number)), (rows * classes, cells))[p1y.ravel() > 0]
    second = sparse.csr_matrix((one, (j * classes + y, number)), (columns * classes, cells))[p2y.ravel() > 0]
    marginals = sparse.vstack([first, second])
    pair = sparse.csr_matrix((one, (i * columns + j, number)), (rows * columns, cells))
    select = sparse.csr_matrix((one, (number, i * columns + j)), (cells, rows * columns))
    total = (select @ pair).tocoo()
    eye, nothing = sparse.identity(cells, format="csr"), sparse.csr_matrix((cells, cells))
    cones = sparse.vstack(
        [sparse.hstack([eye, nothing]), sparse.hstack([nothing, -eye]), sparse.hstack([nothing, -total])]
    ).tocsr()
    # Cell by cell
    order = np.arange(3 * cells).reshape(3, cells).T.ravel()
    none = sparse.csr_matrix((marginals.shape[0], cells))
    a = sparse.vstack([sparse.hstack([none, marginals]), cones[order]]).tocsc()
    b = np.concatenate([p1y.ravel()[p1y.ravel() > 0], p2y.ravel()[p2y.ravel() > 0], np.zeros(3 * cells)])
    cost = np.concatenate([np.ones(cells), np.zeros(cells)])

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = accuracy
    kinds = [clarabel.ZeroConeT(marginals.shape[0]), *[clarabel.ExponentialConeT()] * cells]
    start = time.process_time()
    empty = sparse.csc_matrix((2 * cells, 2 * cells))
    result = clarabel.DefaultSolver(empty, cost, a, b, kinds, settings).solve()
    end = time.process_time()
    status = str(result.status)
    solved = status in ("Solved", "AlmostSolved")
    entropy = -float(result.obj_val) / np.log(2) if solved else float("nan")
    answer.send(ConeSolution(entropy, end - begin, end - start, status))
