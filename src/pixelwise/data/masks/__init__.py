"""Masks: how they are stored, what they hold, what their values mean, and how they are mended."""
