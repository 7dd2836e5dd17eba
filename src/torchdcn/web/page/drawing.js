// Draws on the picture, for the screen and for files.
import { loopsOf, pathOf } from "./masks.js";

const INK = "#000";
const PAPER = "#fff";

// A picture in which coloured marks stand out: nearly grey, and darker (as the project's figures have it).
export function mutedOf(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const picture = context.getImageData(0, 0, image.width, image.height);
  const { data } = picture;
  for (let i = 0; i < data.length; i += 4) {
    const gray = (data[i] + data[i + 1] + data[i + 2]) / 3;
    for (let c = 0; c < 3; c++) data[i + c] = 0.75 * (0.7 * gray + 0.3 * data[i + c]) + 24;
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

// A receptive field [height, width] of bytes in colours; little heat lets the picture through.
export function heatOf(bytes, width, height, colors) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  bytes.forEach((heat, i) => {
    picture.data.set(colors[heat], 4 * i);
    picture.data[4 * i + 3] = 255 * Math.min(Math.max(2.5 * (heat / 255 - 0.08), 0), 1);
  });
  context.putImageData(picture, 0, 0);
  return canvas;
}

// The picture as the network was shown it: what is kept, and the mean colour elsewhere.
export function cutOutOf(image, mask, fill) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const picture = context.getImageData(0, 0, image.width, image.height);
  const color = fill.map((value) => Math.round(255 * value));
  mask.forEach((kept, i) => kept || picture.data.set(color, 4 * i));
  context.putImageData(picture, 0, 0);
  return { canvas, outline: pathOf(loopsOf(mask, { left: 0, top: 0, width: image.width, height: image.height }), 0) };
}

// Draws what a pane shows. `scene` has image, muted, colors, and what is to be seen of: objects, samples, bins, heat,
// cutOut, place, box. `scale` is screen pixels for each of the picture's; (0, 0) is the centre of the first pixel.
export function paint(context, scene, scale) {
  const { image } = scene;
  const pen = { context, scale, unit: Math.max(0.62, (Math.max(image.width, image.height) * scale) / 900) };
  const gray = scene.samples || scene.bins || scene.heat;
  context.save();
  context.imageSmoothingQuality = "high";
  const below = scene.cutOut ? scene.cutOut.canvas : gray ? scene.muted : image;
  context.imageSmoothingEnabled = !scene.cutOut || scale < 2; // what the network was shown, pixel by pixel
  context.drawImage(below, 0, 0, image.width * scale, image.height * scale);
  context.imageSmoothingEnabled = true;
  if (scene.heat) context.drawImage(scene.heat, 0, 0, image.width * scale, image.height * scale);
  if (scene.cutOut) strokePath(pen, scene.cutOut.outline, 1.4, PAPER);
  for (const object of scene.objects ?? []) paintObject(pen, object, Boolean(gray || scene.cutOut));
  if (!gray && !scene.cutOut) paintTags(pen, image, scene.objects ?? []);
  if (scene.bins) paintBins(pen, scene.bins, scene.box, scene.colors);
  if (scene.samples) paintSamples(pen, scene.samples, scene.colors);
  if (scene.box) paintBox(pen, scene.box);
  else if (scene.place) paintRing(pen, scene.place);
  context.restore();
}

const toScreen = (pen, value) => (value + 0.5) * pen.scale;

function strokePath(pen, path, width, color, dash = []) {
  const { context, scale } = pen;
  context.save();
  context.setTransform(context.getTransform().scale(scale).translate(0.5, 0.5));
  context.lineJoin = "round";
  for (const [line, style] of [[width + 1.6, INK], [width, color]]) {
    context.lineWidth = (line * Math.max(1, pen.unit)) / scale;
    context.strokeStyle = style;
    context.setLineDash(style === INK ? [] : dash.map((length) => length / scale));
    context.stroke(path);
  }
  context.restore();
}

function paintObject(pen, object, faint) {
  const { context, scale } = pen;
  context.save();
  context.setTransform(context.getTransform().scale(scale).translate(0.5, 0.5));
  if (object.outline) {
    context.fillStyle = object.color;
    context.globalAlpha = faint ? 0 : 0.38;
    context.fill(object.outline, "evenodd");
  }
  context.globalAlpha = faint ? 0.75 : 1;
  context.strokeStyle = faint ? PAPER : object.color;
  context.lineWidth = ((faint ? 1 : 2) * Math.max(0.8, pen.unit)) / scale;
  if (faint) context.setLineDash([4 / scale, 3 / scale]);
  const [x1, y1, x2, y2] = object.box;
  if (object.outline) context.stroke(object.outline);
  if (object.outline && !faint) context.lineWidth /= 2;
  // A box counts from the picture's corner.
  if (!object.outline || !faint) context.strokeRect(x1 - 0.5, y1 - 0.5, x2 - x1, y2 - y1);
  context.restore();
}

function paintTags(pen, image, objects) {
  const { context, scale } = pen;
  const size = Math.round(Math.max(11, 12.5 * pen.unit));
  const [wide, high] = [image.width * scale, image.height * scale];
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const taken = [];
  for (const object of objects) {
    const text = `${object.name} ${object.score.toFixed(2)}`;
    const [w, h] = [context.measureText(text).width + size * 0.8, size * 1.5];
    const [x1, y1, x2, y2] = object.box.map((value) => value * scale);
    const spots = [[x1, y1 - h], [x1, y2], [x2 - w, y1 - h], [x2 - w, y2], [x1, y1]];
    const spot = spots
      .map(([x, y]) => [Math.min(Math.max(x, 0), Math.max(0, wide - w)), y])
      .find(([x, y]) => y >= 0 && y + h <= high
        && !taken.some(([a, b, c, d]) => x < a + c && a < x + w && y < b + d && b < y + h));
    if (!spot) continue;
    taken.push([...spot, w, h]);
    context.fillStyle = object.color;
    context.beginPath();
    context.roundRect(...spot, w, h, size * 0.3);
    context.fill();
    context.fillStyle = object.ink;
    context.fillText(text, spot[0] + size * 0.4, spot[1] + h / 2 + 0.5);
  }
}

function paintSamples(pen, samples, colors) {
  const { context, unit } = pen;
  const { points, weights, regular } = samples;
  context.lineWidth = 1.1 * unit;
  context.strokeStyle = "rgb(255 255 255 / 0.7)";
  context.beginPath();
  const seen = new Set();
  const arm = 3.5 * unit;
  for (let i = 0; i < regular.length; i += 2) {
    const key = `${regular[i]},${regular[i + 1]}`;
    if (seen.has(key)) continue;
    seen.add(key);
    const [x, y] = [toScreen(pen, regular[i]), toScreen(pen, regular[i + 1])];
    context.moveTo(x - arm, y);
    context.lineTo(x + arm, y);
    context.moveTo(x, y - arm);
    context.lineTo(x, y + arm);
  }
  context.stroke();
  const most = weights.reduce((a, b) => Math.max(a, b), 1e-12);
  const order = [...weights.keys()].filter((i) => weights[i] > 0).sort((a, b) => weights[a] - weights[b]);
  context.lineWidth = 0.6 * unit;
  context.strokeStyle = INK;
  for (const i of order) { // the strongest on top
    const share = weights[i] / most;
    context.fillStyle = `rgb(${colors[Math.round(255 * share)].join(" ")})`;
    context.beginPath();
    context.arc(toScreen(pen, points[2 * i]), toScreen(pen, points[2 * i + 1]), radius(share, unit), 0, 7);
    context.fill();
    context.stroke();
  }
}

const radius = (share, unit) => 1.39 * Math.sqrt((5 + 40 * share) / Math.PI) * unit;

function paintBins(pen, bins, box, colors) {
  const { context, scale, unit } = pen;
  const count = Math.sqrt(bins.weights.length);
  const [w, h] = [((box[2] - box[0]) / count) * scale, ((box[3] - box[1]) / count) * scale];
  const most = Math.max(1e-12, ...bins.weights);
  bins.points.forEach(([px, py], i) => {
    const [x, y] = [toScreen(pen, px), toScreen(pen, py)];
    const [rx, ry] = bins.regular[i].map((value) => toScreen(pen, value));
    const share = bins.weights[i] / most;
    const color = colors[Math.round(255 * share)].join(" ");
    context.fillStyle = `rgb(${color} / ${0.04 + 0.26 * share})`;
    context.fillRect(x - w / 2, y - h / 2, w, h);
    context.strokeStyle = `rgb(${color})`;
    context.lineWidth = 1.1 * unit;
    context.strokeRect(x - w / 2, y - h / 2, w, h);
    context.strokeStyle = "rgb(255 255 255 / 0.8)";
    context.beginPath();
    context.moveTo(rx, ry);
    context.lineTo(x, y);
    context.stroke();
  });
  bins.points.forEach(([px, py], i) => {
    const share = bins.weights[i] / most;
    context.fillStyle = `rgb(${colors[Math.round(255 * share)].join(" ")})`;
    context.strokeStyle = INK;
    context.lineWidth = 0.6 * unit;
    context.beginPath();
    context.arc(toScreen(pen, px), toScreen(pen, py), radius(share, unit) * 0.9, 0, 7);
    context.fill();
    context.stroke();
  });
}

function paintBox(pen, [x1, y1, x2, y2]) {
  const { context, scale, unit } = pen;
  for (const [width, color] of [[3.6, INK], [1.8, PAPER]]) {
    context.lineWidth = width * unit;
    context.strokeStyle = color;
    context.strokeRect(x1 * scale, y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale);
  }
}

function paintRing(pen, [px, py]) {
  const { context, unit } = pen;
  for (const [width, color] of [[4.5, INK], [2.2, PAPER]]) {
    context.lineWidth = width * unit;
    context.strokeStyle = color;
    context.beginPath();
    context.arc(toScreen(pen, px), toScreen(pen, py), 9 * unit, 0, 7);
    context.stroke();
  }
}

// Black or white, whichever is easier to read on a colour.
export function inkOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 110 ? INK : PAPER;
}
