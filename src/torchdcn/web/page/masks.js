// Masks: from COCO's compressed run lengths to pixels, and to outlines.

// Runs go down the columns; each number is 5 bits a character, from the third on the difference to the last but one.
// Decodes only a window `{ left, top, width, height }` that holds the mask: a hundred whole masks would fill the memory.
export function decodeMask({ size: [height, width], counts }, window = { left: 0, top: 0, width, height }) {
  const mask = new Uint8Array(window.height * window.width);
  const runs = [];
  let place = 0;
  let position = 0;
  while (position < counts.length) {
    let value = 0;
    let shift = 0;
    let more = true;
    while (more) {
      const bits = counts.charCodeAt(position++) - 48;
      value |= (bits & 31) << shift;
      more = (bits & 32) !== 0;
      shift += 5;
      if (!more && bits & 16) value |= -1 << shift;
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    if (runs.length % 2 === 1) {
      for (let i = place; i < place + value; i++) {
        const [x, y] = [Math.floor(i / height) - window.left, (i % height) - window.top];
        if (x >= 0 && y >= 0 && x < window.width && y < window.height) mask[y * window.width + x] = 1;
      }
    }
    place += value;
    runs.push(value);
  }
  return mask;
}

// For the corners of a square between four pixels that are in the mask (1 left upper, 2 right upper, 4 right lower,
// 8 left lower), the steps from side to side (0 upper, 1 right, 2 lower, 3 left) that keep the mask on their left.
const STEPS = [[], [[3, 0]], [[0, 1]], [[3, 1]], [[1, 2]], [[3, 0], [1, 2]], [[0, 2]], [[3, 2]], [[2, 3]], [[2, 0]],
  [[0, 1], [2, 3]], [[2, 1]], [[1, 3]], [[1, 0]], [[0, 3]], []];

// The outline of a mask [height, width] as closed loops of x, y; pixels' centres are whole numbers, the first one's is
// (left, top).
export function loopsOf(mask, { left, top, width, height }) {
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : mask[y * width + x]);
  const stride = 2 * width + 4;
  const next = new Map(); // from the middle of one side to the next, both as numbers of a grid of half pixels
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const kind = at(x, y) + 2 * at(x + 1, y) + 4 * at(x + 1, y + 1) + 8 * at(x, y + 1);
      for (const [from, to] of STEPS[kind]) next.set(side(x, y, from, stride), side(x, y, to, stride));
    }
  }
  const loops = [];
  while (next.size) {
    const [first] = next.keys();
    const loop = [];
    for (let key = first; next.has(key); ) {
      loop.push([left + (key % stride) / 2 - 1, top + Math.floor(key / stride) / 2 - 1]);
      const then = next.get(key);
      next.delete(key);
      key = then;
    }
    loops.push(loop);
  }
  return loops;
}

const HALF = [[1, 0], [2, 1], [1, 2], [0, 1]];

function side(x, y, which, stride) {
  const [right, down] = HALF[which];
  return (2 * y + 2 + down) * stride + 2 * x + 2 + right;
}

// Loops as a path to fill or stroke; rounded a little where `smooth` says so.
export function pathOf(loops, smooth) {
  const path = new Path2D();
  for (let loop of loops) {
    for (let round = 0; round < smooth; round++) {
      const before = loop;
      loop = loop.map((point, i) => [0, 1].map((axis) =>
        (before.at(i - 1)[axis] + 2 * point[axis] + before[(i + 1) % before.length][axis]) / 4));
    }
    loop.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return path;
}
