"""What a method must know of data: files of statistics, read beside the models, and how they are collected."""

from .file import FINGERPRINT, Coefficients, Statistics, alike, fingerprint, open_statistics, scaled

__all__ = ["FINGERPRINT", "Coefficients", "Statistics", "alike", "fingerprint", "open_statistics", "scaled"]
