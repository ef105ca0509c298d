"""`python -m pixelwise` is the command line."""

from pixelwise.cli import main

main()
