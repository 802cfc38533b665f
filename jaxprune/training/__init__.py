"""Training of small networks: by the whole one, by labels, for any network."""
