"""Errors, checks of arguments, files, manifests, devices, processes."""
