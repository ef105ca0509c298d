"""A trained network on images of any size: tiles, engines, files in, masks out."""
