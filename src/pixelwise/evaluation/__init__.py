"""A run against a split: figures and cases."""
