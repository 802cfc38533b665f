"""`jaxprune compact`: smaller networks, proved and measured."""
