"""Data sets: folders, labels, the doctor, samples, synthetic images."""
