"""Reading, following, masking and filling a layer's channels in any linen model."""
