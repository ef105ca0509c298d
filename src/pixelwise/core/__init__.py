"""What every room stands on: errors, settings, class names, files, memory. No torch here."""
