// Files to download: the picture that is shown, with its legend, and the numbers behind it.
import { paint } from "./drawing.js";
import { letterOf } from "./panel.js";

const STRIP = 46;
const TITLE = 34;
const GAP = 14;

// All panes side by side, enlarged to about 900 pixels, on white.
export function pictureOf(panes, sceneOf, colors, caption) {
  const scenes = panes.map(sceneOf);
  const { width, height } = scenes[0].image;
  const scale = Math.max(1, Math.round(900 / Math.max(width, height)));
  const [wide, high] = [width * scale, height * scale];
  const canvas = new OffscreenCanvas(panes.length * (wide + GAP) + GAP, TITLE + high + STRIP);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.textBaseline = "middle";
  panes.forEach((pane, i) => {
    const left = GAP + i * (wide + GAP);
    context.font = "600 15px system-ui, sans-serif";
    context.fillStyle = "#1c2024";
    const letter = panes.length > 1 ? `${letterOf(pane)}  ` : "";
    context.fillText(`${letter}${pane.network.name} (${pane.network.weights ?? "random weights"})`, left, TITLE / 2, wide);
    context.save();
    context.translate(left, TITLE);
    context.beginPath();
    context.rect(0, 0, wide, high);
    context.clip();
    paint(context, scenes[i], scale);
    context.restore();
  });
  strip(context, colors, caption, TITLE + high + STRIP / 2, canvas.width);
  return canvas.convertToBlob({ type: "image/png" });
}

function strip(context, colors, caption, middle, width) {
  let left = GAP;
  if (caption.scale) {
    for (let x = 0; x < 180; x++) {
      context.fillStyle = `rgb(${colors[Math.round((255 * x) / 179)].join(" ")})`;
      context.fillRect(left + x, middle - 6, 1, 12);
    }
    left += 190;
  }
  context.font = "14px system-ui, sans-serif";
  context.fillStyle = "#444";
  context.fillText(caption.text, left, middle, width - left - GAP);
}

// Typed arrays become lists of [x, y], or of numbers.
const pairs = (flat) => Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);

export function numbersOf(state, nodeOf, samplesAt) {
  const networks = state.panes.map((pane) => {
    const samples = samplesAt(pane);
    const { bins, field, region } = pane.found;
    const without = (answer) => answer && Object.fromEntries(Object.entries(answer).filter(([key]) => !HIDDEN.has(key)));
    return {
      model: pane.network.name,
      weights: pane.network.weights,
      node: nodeOf(pane),
      detections: pane.results,
      samples: samples && {
        layers: samples.layers,
        points: pairs(samples.points),
        weights: Array.from(samples.weights),
        regular: pairs(samples.regular),
      },
      bins: without(bins) ?? null,
      field: without(field) ?? null,
      region: without(region) ?? null,
    };
  });
  const { width, height, original } = state.picture;
  return { image: { name: state.name, width, height, original }, score: state.score, depth: state.depth, networks };
}

const HIDDEN = new Set(["bytes", "heat", "cutOut"]); // pictures, not numbers

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
