"""Networks of other frameworks as functions, and back."""
