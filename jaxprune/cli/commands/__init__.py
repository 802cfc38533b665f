"""The commands; `main` is called with the flags parsed."""
