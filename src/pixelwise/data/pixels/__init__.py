"""Arrays in, arrays out: intensities, scale, augmentation, targets, pictures."""
