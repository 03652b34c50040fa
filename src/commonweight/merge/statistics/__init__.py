"""What a method must know of data: files of statistics, and how they are collected."""

from .file import FINGERPRINT, Statistics, alike, fingerprint, open_statistics

__all__ = ["FINGERPRINT", "Statistics", "alike", "fingerprint", "open_statistics"]
