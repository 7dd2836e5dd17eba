// What the user has chosen, what the server has answered, and what follows from both.
import { centreOf, nodeAt, roundHalfEven, samplesOf } from "./sampling.js";

export const MOST_SAMPLES = 60_000;

export const state = {
  about: null,
  picture: null, // id, width, height
  name: "", // of the file
  panes: [], // one a network
  layer: "",
  depth: 3, // layers that samples are followed through
  wishedDepth: 3, // the same, where there are so many
  score: 0.5,
  hidden: new Set(), // names of classes
  view: "objects",
  hover: null, // x, y in the picture
  cursor: null, // the same, for the keyboard
  pinned: null, // { x, y }, or { roi, pane, object }
  work: null, // stops what is going on
  busy: null, // which view is waited for
};

export const visible = (pane) => pane.objects.filter((o) => o.score >= state.score && !state.hidden.has(o.name));

// A network's layer that corresponds to the chosen one: of the same name, or the last of the same stage.
export function layersUpTo(pane) {
  const { layers } = pane.layers;
  let last = layers.findIndex((layer) => layer.name === state.layer);
  if (last < 0) {
    const stage = state.layer.split(".").slice(0, 3).join(".");
    last = layers.findLastIndex((layer) => layer.name.startsWith(`${stage}.`));
  }
  return layers.slice(0, last < 0 ? undefined : last + 1);
}

export const place = () => state.hover ?? state.cursor ?? (state.pinned?.roi ? null : state.pinned);

export function positionAt(pane, at) {
  const layers = layersUpTo(pane);
  const layer = layers.at(-1);
  const node = nodeAt(layer, pane.layers, at.x, at.y);
  return { layers, layer, node, centre: centreOf(layer, pane.layers, node) };
}

export function samplesAt(pane, at = place()) {
  if (!at || !pane.layers) return null;
  const { layers, node } = positionAt(pane, at);
  return samplesOf(layers, pane.layers, pane.layers.values, node, state.depth);
}

// The node that was clicked, or chosen, as the server wants it.
export function nodeOf(pane) {
  if (!state.pinned) return null;
  if (state.pinned.roi) return { roi: state.pinned.roi };
  const { layer, node } = positionAt(pane, state.pinned);
  return { layer: layer.node, ...node };
}

// The object that the support is compared with; the server says which one it is.
export function objectOf(pane) {
  const { bins, field, region } = pane.found;
  return pane.objects[(bins ?? field ?? region)?.object_index] ?? null;
}

// The object at a pixel, as the server would answer; unless it is hidden.
function objectUnder(pane, { x, y }) {
  const object = pane.objects[pane.byPixel[roundHalfEven(y) * state.picture.width + roundHalfEven(x)]];
  return visible(pane).includes(object) ? object : null;
}

// The view that is shown: pointing at the picture shows samples.
export function shownView() {
  if (state.view === "objects" && (state.hover || state.cursor) && ready()) return "points";
  return state.view;
}

export const ready = () => state.panes.length > 0 && state.panes.every((pane) => pane.layers);

export function sceneOf(pane) {
  const view = shownView();
  const scene = { image: pane.image, muted: pane.muted, colors: state.about.colors, objects: visible(pane) };
  const { bins, field, region } = pane.found;
  if (view === "objects") return scene;
  scene.box = state.pinned?.roi ?? null;
  if (view === "points") {
    const at = place();
    if (at) {
      scene.samples = samplesAt(pane, at);
      scene.place = pane.layers && positionAt(pane, at).centre;
      scene.box = null;
      const under = objectUnder(pane, at);
      scene.objects = under ? [under] : []; // more outlines would be in the way
    } else if (bins) {
      scene.bins = bins;
      scene.objects = [objectOf(pane)].filter(Boolean);
    }
    return scene;
  }
  const object = objectOf(pane);
  scene.objects = object ? [object] : [];
  if (!scene.box && state.pinned) scene.place = positionAt(pane, state.pinned).centre;
  if (view === "field" && field) scene.heat = field.heat;
  if (view === "region" && region) scene.cutOut = region.cutOut;
  return scene;
}

// Where to begin: in the middle of the surest object.
export function bestPlace() {
  const best = visible(state.panes[0])[0];
  if (!best) return { x: (state.picture.width - 1) / 2, y: (state.picture.height - 1) / 2 };
  return { x: (best.box[0] + best.box[2]) / 2 - 0.5, y: (best.box[1] + best.box[3]) / 2 - 0.5 };
}
