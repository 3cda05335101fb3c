"""Text as sound and back: a letter is a chord of two tones, as on the keys of a telephone.

A real recogniser would be gigabytes of model; this one is enough to have real audio in, noise and
all, and to check what comes out. Samples are 16-bit, one channel, `RATE` a second.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["LETTER_S", "RATE", "Listener", "read_chunks", "speak", "write_wav"]

RATE = 8000
LETTERS = "abcdefghijklmnopqrstuvwxyz äöüß'"
LOW_HZ = np.array([500, 600, 700, 800])
HIGH_HZ = np.array([1100, 1300, 1500, 1700, 1900, 2100, 2300, 2500])
TONE, PAUSE = 400, 80
"""Samples of a letter that sound, and that do not."""
LETTER_S = (TONE + PAUSE) / RATE
LOUDNESS = 8000

_TIME_S = np.arange(TONE) / RATE


def speak(text: str) -> bytes:
    """The samples of a text.

    Raises:
        ValueError: It has a letter that the language lacks.
    """
    spoken = []
    for letter in text:
        low, high = divmod(LETTERS.index(letter), len(HIGH_HZ))
        chord = np.sin(2 * np.pi * LOW_HZ[low] * _TIME_S)
        chord += np.sin(2 * np.pi * HIGH_HZ[high] * _TIME_S)
        spoken.append(np.concatenate([chord, np.zeros(PAUSE)]))
    samples = LOUDNESS * np.concatenate(spoken) if spoken else np.zeros(0)
    return samples.astype(np.int16).tobytes()


class Listener:
    """Hears letters in chunks of any size."""

    def __init__(self) -> None:
        self._heard = np.zeros(0, np.int16)

    def hear(self, chunk: bytes) -> str:
        """The letters that are complete with this chunk."""
        self._heard = np.concatenate([self._heard, np.frombuffer(chunk, np.int16)])
        letters = ""
        while len(self._heard) >= TONE + PAUSE:
            letters += self._letter(self._heard[:TONE])
            self._heard = self._heard[TONE + PAUSE :]
        return letters

    def _letter(self, samples: np.ndarray) -> str:
        low, high = (int(np.argmax(_strengths(samples, each))) for each in (LOW_HZ, HIGH_HZ))
        return LETTERS[low * len(HIGH_HZ) + high]


def _strengths(samples: np.ndarray, frequencies_hz: np.ndarray) -> np.ndarray:
    waves = np.exp(-2j * np.pi * np.outer(frequencies_hz, _TIME_S))
    strengths: np.ndarray = np.abs(waves @ samples)
    return strengths


def write_wav(path: Path, samples: bytes, noise: float = 0.0) -> None:
    """Write a WAV file.

    Args:
        path: Of the file.
        samples: As of `speak`.
        noise: How loud the hiss is that is mixed in, against a tone.
    """
    clean = np.frombuffer(samples, np.int16)
    hiss = np.random.default_rng(1).normal(0, noise * LOUDNESS, len(clean))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.clip(clean + hiss, -32768, 32767).astype(np.int16).tobytes())


def read_chunks(path: Path, chunk_s: float) -> Iterator[bytes]:
    """The samples of a WAV file, so many seconds at a time."""
    with wave.open(str(path), "rb") as file:
        while chunk := file.readframes(round(chunk_s * RATE)):
            yield chunk
