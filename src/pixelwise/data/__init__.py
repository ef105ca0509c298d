"""Images and masks: files, data sets, targets and samples."""
