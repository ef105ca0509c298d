"""One file an architecture; `pixelwise.models.MODELS` lists them by name."""
