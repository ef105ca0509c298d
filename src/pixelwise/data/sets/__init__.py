"""Data sets as folders: pairs, splits, training samples; and one that is made up."""
