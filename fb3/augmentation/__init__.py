"""Augmentation: essays changed a little each time they are drawn for training."""

from fb3.augmentation.draw import Augmented, augmented

__all__ = ["Augmented", "augmented"]
