"""A data set that needs no download: handwritten digits, and the same digit dialled on a noisy line.

Image: the 1 797 real handwritten digits (8 x 8) that ship inside scikit-learn, as they are. Audio: the
two-tone signal of the digit's key (DTMF, ITU-T Recommendation Q.23) with random phases, levels, onset and
length, in white noise at a random signal-to-noise ratio. Neither is enough by itself: some digits are written
badly, some dialled too quietly. Pairing is by digit only, so image and audio are independent given the label.
"""

import io

import datasets
import numpy as np
import soundfile
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# The frequencies in Hz of the rows and columns of the keypad, by ITU-T Q.23.
ROWS = (697, 770, 852, 941)
COLUMNS = (1209, 1336, 1477)
KEYS = ("123", "456", "789", "*0#")
# The sampling rate of a telephone, in Hz.
SAMPLING_RATE = 8000
# The length of a sound: 0.15 s.
NUM_SAMPLES = 1200
SNR_DB = (-24.0, 2.0)

FREQUENCIES = {
    int(key): (ROWS[row], COLUMNS[column])
    for row, keys in enumerate(KEYS)
    for column, key in enumerate(keys)
    if key.isdigit()
}

# For each split, the number of source images and the number of sounds for each image. There are few training images, so
# training is quick, and many validation images, so a probe has 1 200 rows.
SPLITS = {"train": (400, 4), "validation": (600, 2), "test": (797, 2)}


def dial(digit: int, generator: np.random.Generator, snr_db: float | None = None) -> np.ndarray:
    """The sound of one key (ITU-T Q.23): samples (1200,), float32, 8 kHz, with a root mean square of 0.1.

    Args:
        digit: 0 to 9.
        generator: source of phases, levels, onset, length and noise.
        snr_db: power of the tones while they sound over the power of the noise, in dB; None: no noise at all.
    """
    time = np.arange(NUM_SAMPLES) / SAMPLING_RATE
    length = generator.integers(NUM_SAMPLES // 2, NUM_SAMPLES + 1)
    onset = generator.integers(0, NUM_SAMPLES - length + 1)
    sounding = (np.arange(NUM_SAMPLES) >= onset) & (np.arange(NUM_SAMPLES) < onset + length)
    tones = [
        10 ** (generator.uniform(-2, 2) / 20) * np.sin(2 * np.pi * (hertz * time + generator.uniform()))
        for hertz in FREQUENCIES[digit]
    ]
    signal = np.sum(tones, axis=0) * sounding
    if snr_db is not None:
        power = np.square(signal[sounding]).mean()
        noise = generator.standard_normal(NUM_SAMPLES)
        signal = signal + noise * np.sqrt(power / 10 ** (snr_db / 10))
    return (0.1 * signal / np.sqrt(np.square(signal).mean())).astype(np.float32)


def load_digits_splits(seed: int = 0) -> datasets.DatasetDict:
    """Train (1 600 rows), validation (1 200) and test (1 594), the same for the same seed on every machine.

    The splits are by source image and stratified: no image is in two of them, and no sound is used twice.

    Columns: `image` (8 x 8 grey PNG), `audio` (0.15 s WAV, 16 bit, 8 kHz, bytes), `label` (0 to 9), `snr_db`,
    and `source` (the number of the image in scikit-learn's set).
    """
    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)]),
            "snr_db": datasets.Value("float32"),
            "source": datasets.Value("int32"),
        }
    )
    generator = np.random.default_rng(seed)
    rest = np.arange(len(labels))
    splits = {}
    for name, (num_images, draws) in SPLITS.items():
        if num_images < len(rest):
            sources, rest = train_test_split(
                rest, train_size=num_images, stratify=labels[rest], random_state=seed
            )
        else:
            sources = rest
        rows = [_row(images[source], int(labels[source]), generator) for source in np.repeat(sources, draws)]
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        columns["source"] = np.repeat(sources, draws).tolist()
        stored = datasets.Dataset.from_dict(columns, features=features)
        # The sounds are given as bytes, because datasets needs torchcodec to encode them.
        splits[name] = stored.cast_column("audio", datasets.Audio(sampling_rate=SAMPLING_RATE, decode=False))
    return datasets.DatasetDict(splits)


def _row(image: np.ndarray, label: int, generator: np.random.Generator) -> dict[str, object]:
    snr_db = generator.uniform(*SNR_DB)
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).save(picture, "PNG")
    soundfile.write(sound, dial(label, generator, snr_db), SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return {
        "image": {"bytes": picture.getvalue(), "path": None},
        "audio": {"bytes": sound.getvalue(), "path": None},
        "label": label,
        "snr_db": snr_db,
    }
