"""A network's function as one graph: its equations, layers and coupled channels."""
