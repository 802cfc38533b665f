"""What each command does; `main` is called with the flags parsed."""
