"""Image files: readers and writers of whole images, sources and sinks of windows."""
