"""Small encoders, trained from scratch in seconds on one core.

Without normalization layers by default: batch statistics would undo the scale of an input, by which some suites make a
modality slow. Where the label is an interaction, embeddings are batch-normalized: without centered embeddings, training
does not leave chance in the time that a suite has.
"""

import math

from torch import Tensor, nn

EMBEDDING_DIM = 64


class ImageEncoder(nn.Module):
    """Convolutions of stride 2 and a linear layer: images (B, C, H, W) to embeddings (B, 64).

    Args:
        input_shape: (C, H, W).
        channels: of the convolutions (3 x 3, stride 2, ReLU), one by one.
        batch_norm: end with batch normalization, not with a ReLU.
    """

    embedding_dim = EMBEDDING_DIM

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        channels: tuple[int, ...] = (16, 32, 32),
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        width, height, length = input_shape
        layers: list[nn.Module] = []
        for out in channels:
            layers += [nn.Conv2d(width, out, kernel_size=3, stride=2, padding=1), nn.ReLU()]
            width, height, length = out, (height + 1) // 2, (length + 1) // 2
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.project = nn.Sequential(nn.Linear(width * height * length, EMBEDDING_DIM), _last(batch_norm))

    def forward(self, values: Tensor) -> Tensor:
        """Embeddings (B, 64) of values (B, C, H, W)."""
        return self.project(self.convolutions(values))


class SpectrogramEncoder(nn.Module):
    """Convolutions and the maximum over time: spectrograms (B, 1, F, T) to embeddings (B, 64), whenever the sound is.

    Args:
        num_frequencies: F.
        batch_norm: end with batch normalization, not with a ReLU.
    """

    embedding_dim = EMBEDDING_DIM

    def __init__(self, num_frequencies: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
        )
        features = 32 * math.ceil(num_frequencies / 8)
        self.project = nn.Sequential(nn.Linear(features, EMBEDDING_DIM), _last(batch_norm))

    def forward(self, values: Tensor) -> Tensor:
        """Embeddings (B, 64) of spectrograms (B, 1, F, T)."""
        return self.project(self.convolutions(values).amax(dim=3).flatten(1))


class SignalEncoder(nn.Module):
    """Convolutions and the mean over time: signals (B, C, T) of a sensor to embeddings (B, 64).

    Args:
        num_channels: C.
    """

    embedding_dim = EMBEDDING_DIM

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(num_channels, 16, kernel_size=7, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv1d(16, 32, kernel_size=5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(32, 64, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.project = nn.Sequential(nn.Linear(64, EMBEDDING_DIM), nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        """Embeddings (B, 64) of signals (B, C, T)."""
        return self.project(self.convolutions(values).mean(dim=2))


class TextEncoder(nn.Module):
    """Mean of word vectors and a linear layer: token ids (B, T), int64, to embeddings (B, 64).

    Args:
        vocabulary_size: number of token ids; 0 is padding.
    """

    embedding_dim = EMBEDDING_DIM

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(vocabulary_size, EMBEDDING_DIM, mode="mean", padding_idx=0)
        self.project = nn.Sequential(nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM), nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        """Embeddings (B, 64) of token ids (B, T)."""
        return self.project(self.words(values))


class FeatureEncoder(nn.Module):
    """Dropout and a linear layer: feature vectors (B, D), such as frozen embeddings, to embeddings (B, 64).

    Args:
        num_features: D.
        dropout: share of the features that are left out of a row in training.
    """

    embedding_dim = EMBEDDING_DIM

    def __init__(self, num_features: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(num_features, EMBEDDING_DIM), nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        """Embeddings (B, 64) of values (B, D)."""
        return self.project(values)


def _last(batch_norm: bool) -> nn.Module:
    return nn.BatchNorm1d(EMBEDDING_DIM) if batch_norm else nn.ReLU()
