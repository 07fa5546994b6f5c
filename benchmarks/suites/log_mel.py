"""Sounds as pictures: the log-mel spectrogram of one second at 8 kHz."""

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

# In Hz.
SAMPLING_RATE = 8000
# In samples: 32 ms. The hop is as long.
WINDOW = 256
# The window is padded with zeros to twice its length, so that no mel band is empty.
NUM_FREQUENCIES = WINDOW + 1
NUM_BANDS = 40
FLOOR = 1e-6


def log_mel(waves: Tensor) -> Tensor:
    """Natural logarithm of the mel-band powers of waves (N, 8000), float32, 8 kHz: (N, 1, 40, 32)."""
    spectrum = torch.stft(
        waves,
        n_fft=2 * WINDOW,
        hop_length=WINDOW,
        win_length=WINDOW,
        window=torch.hann_window(WINDOW),
        pad_mode="constant",
        return_complex=True,
    )
    filters = mel_filter_bank(NUM_FREQUENCIES, NUM_BANDS, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE)
    bands = torch.as_tensor(filters.T, dtype=torch.float32) @ spectrum.abs().square()
    return (bands + FLOOR).log().unsqueeze(1)
