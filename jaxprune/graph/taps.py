"""Where a layer's feature map is taken: behind its BatchNorm and ReLU."""

from dataclasses import replace

from jaxprune.graph.evaluate import is_relu
from jaxprune.graph.labels import ELEMENTWISE
from jaxprune.graph.layers import Layer


def up_to_relu(layer: Layer) -> Layer:
    """The layer with the BatchNorm and the ReLU that follow it as parts of it.

    What lies between is element by element and reads nothing else of the image. The
    layer as it is, where a ReLU follows at once, or none.
    """
    program, value = layer.program, layer.output
    between: list[int] = []
    while True:
        readers = program.read_by[value]
        if len(readers) != 1 or program.used_by(value) != 1:
            return layer
        (eqn,) = readers
        if is_relu(program, eqn):
            break
        others = [v for v in eqn.inputs if v != value and v in program.live]
        shapes = {program.shape(output) for output in eqn.outputs}
        alike = shapes == {program.shape(value)} and eqn.name in ELEMENTWISE
        if others or not alike:
            return layer
        between.append(value)
        (value,) = eqn.outputs
    if not between:
        return layer
    inner = (*layer.inner, *between, value)
    return replace(layer, output=eqn.outputs[0], inner=inner)
