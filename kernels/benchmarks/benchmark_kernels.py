"""The kernels at the size of a probe, in the form of `kernels benchmark`: each against plain PyTorch."""

import torch
from kernels.benchmark import Benchmark

NUM_ROWS, NUM_COLUMNS, NUM_DIRECTIONS, NUM_CLUSTERS, NUM_CLASSES = 20_000, 768, 8, 20, 10


class KernelsBenchmark(Benchmark):
    """20 000 rows of 768 columns, 8 directions, 20 clusters, 10 classes."""

    seed = 0

    def setup(self) -> None:
        """Draw rows, and the inputs of the steps that follow."""
        self.rows = torch.randn(NUM_ROWS, NUM_COLUMNS, device=self.device)
        self.basis = torch.randn(NUM_COLUMNS, NUM_DIRECTIONS, device=self.device)
        self.offset = torch.randn(NUM_DIRECTIONS, device=self.device)
        self.radius = torch.tensor(1.0, device=self.device)
        self.points = torch.randn(1, NUM_ROWS, NUM_DIRECTIONS, device=self.device)
        self.centers = torch.randn(1, NUM_CLUSTERS, NUM_DIRECTIONS, device=self.device)
        self.first, self.second = torch.randint(0, NUM_CLUSTERS, (2, NUM_ROWS), device=self.device)
        self.label = torch.randint(0, NUM_CLASSES, (NUM_ROWS,), device=self.device)

    def benchmark_project(self) -> None:
        """Rows, scaled, onto directions."""
        self.out = self.kernel.project(self.rows, self.basis, self.offset, self.radius)

    def verify_project(self) -> torch.Tensor:
        """The same in plain PyTorch."""
        scale = (self.rows.square().sum(1, keepdim=True) + self.radius**2).sqrt()
        return self.rows / scale @ self.basis - self.offset

    def benchmark_nearest(self) -> None:
        """The distance of each point to the nearest center."""
        self.out = self.kernel.nearest(self.points, self.centers)[1]

    def verify_nearest(self) -> torch.Tensor:
        """The same in plain PyTorch."""
        return torch.cdist(self.points, self.centers).square().amin(2)

    def benchmark_histogram(self) -> None:
        """How often clusters and label occur together."""
        self.out = self.kernel.histogram(
            self.first, self.second, self.label, NUM_CLUSTERS, NUM_CLUSTERS, NUM_CLASSES
        )

    def verify_histogram(self) -> torch.Tensor:
        """The same in plain PyTorch."""
        cell = (self.first * NUM_CLUSTERS + self.second) * NUM_CLASSES + self.label
        counts = torch.bincount(cell, minlength=NUM_CLUSTERS**2 * NUM_CLASSES)
        return counts.reshape(NUM_CLUSTERS, NUM_CLUSTERS, NUM_CLASSES).to(torch.int32)
