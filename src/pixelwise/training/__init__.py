"""From data and settings to a run: the plan, the loop, and all that comes before it."""
