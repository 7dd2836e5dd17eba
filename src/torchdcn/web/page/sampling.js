// Computes where a position of a layer samples, as torchdcn.analysis.sampling_locations does it, in float32.
const f = Math.fround;

// Halves go to the even neighbour, as in torch and Python.
export function roundHalfEven(value) {
  const up = Math.round(value);
  return up - value === 0.5 && up % 2 !== 0 ? up - 1 : up;
}

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

// The position of a layer's output that is nearest to a pixel (node_at).
export function nodeAt(layer, mapping, x, y) {
  const [row, column] = [y, x].map((pixel, axis) => {
    const scale = mapping.image[axis] / mapping.resized[axis];
    return clamp(roundHalfEven(((pixel + 0.5) / scale - 0.5) / layer.outputStride), 0, layer.output[axis] - 1);
  });
  return { y: row, x: column };
}

// Rows and columns of the network's input, [M, 2], to x, y in the image.
function toPixels(positions, mapping) {
  const scale = [0, 1].map((axis) => f(mapping.image[axis] / mapping.resized[axis]));
  const pixels = new Float32Array(positions.length);
  for (let i = 0; i < positions.length; i += 2) {
    pixels[i] = f(f(f(positions[i + 1] + 0.5) * scale[1]) - 0.5);
    pixels[i + 1] = f(f(f(positions[i] + 0.5) * scale[0]) - 0.5);
  }
  return pixels;
}

// Where a position lies in the image.
export function centreOf(layer, mapping, node) {
  return toPixels([node.y * layer.outputStride, node.x * layer.outputStride], mapping);
}

function step(positions, weights, layer, values, deformed) {
  const taps = layer.taps.length;
  const [height, width] = layer.output;
  const plane = height * width;
  const next = new Float32Array(positions.length * taps);
  const nextWeights = new Float32Array(weights.length * taps);
  for (let i = 0; i < weights.length; i++) {
    const at = [f(positions[2 * i] / layer.outputStride), f(positions[2 * i + 1] / layer.outputStride)];
    const cell = clamp(roundHalfEven(at[0]), 0, height - 1) * width + clamp(roundHalfEven(at[1]), 0, width - 1);
    for (let tap = 0; tap < taps; tap++) {
      let inside = true;
      for (let axis = 0; axis < 2; axis++) {
        let place = f(f(at[axis] * layer.stride[axis]) - layer.padding[axis]);
        place = f(place + layer.taps[tap][axis] * layer.dilation[axis]);
        if (deformed && layer.offset !== null) place = f(place + values[layer.offset + (2 * tap + axis) * plane + cell]);
        inside &&= place > -1 && place < layer.input[axis];
        next[2 * (i * taps + tap) + axis] = f(place * layer.inputStride);
      }
      const mask = layer.mask === null ? 1 : values[layer.mask + tap * plane + cell];
      nextWeights[i * taps + tap] = f(weights[i] * mask) * (inside ? 1 : 0);
    }
  }
  return [next, nextWeights];
}

// The samples of a position through the last `depth` of `layers` (in the order of their use; the last one is the
// position's own): points [M, 2] as x, y, weights [M], and the points of a regular convolution [M, 2].
export function samplesOf(layers, mapping, values, node, depth) {
  const used = layers.slice(-depth).reverse();
  const start = Float32Array.of(node.y * used[0].outputStride, node.x * used[0].outputStride);
  let moved = [start, Float32Array.of(1)];
  let still = [start, Float32Array.of(1)];
  for (const layer of used) {
    moved = step(...moved, layer, values, true);
    still = step(...still, layer, values, false);
  }
  return {
    points: toPixels(moved[0], mapping),
    weights: moved[1],
    regular: toPixels(still[0], mapping),
    layers: used.map((layer) => layer.name),
  };
}
