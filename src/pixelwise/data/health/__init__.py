"""The health of a data set: what every file is like, what is wrong with it, and a mended copy."""
