// The page's front: it runs the steps of each action and shows their results.
import { cutOutOf, heatOf, inkOn, mutedOf, paint } from "./drawing.js";
import { numbersOf, pictureOf, save } from "./files.js";
import { listen, listenToKeys, takeDrops } from "./input.js";
import { decodeMask, loopsOf, pathOf } from "./masks.js";
import { $, LEGENDS, fillSelect, letterOf, make, showClasses, showNumbers, showObjects } from "./panel.js";
import * as server from "./server.js";
import {
  MOST_SAMPLES, bestPlace, layersUpTo, nodeOf, place, positionAt, ready, samplesAt, sceneOf, shownView, state, visible,
} from "./state.js";

const VIEWS = { objects: "Objects", points: "Sampling points", field: "Receptive field", region: "Saliency region" };

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const pane of state.panes) drawPane(pane);
    describe();
  });
}

function drawPane(pane) {
  const { canvas } = pane;
  const { width, height } = state.picture;
  const room = Math.min(canvas.parentElement.clientWidth, 8 * width);
  // What is below the picture should be seen without scrolling, where there is any room for it.
  const top = $("panes").getBoundingClientRect().top + window.scrollY;
  const high = Math.max(240, window.innerHeight - top - 225);
  const scale = Math.min(room / width, high / height);
  const dense = window.devicePixelRatio || 1;
  const [wide, tall] = [Math.round(width * scale * dense), Math.round(height * scale * dense)];
  if (canvas.width !== wide || canvas.height !== tall) {
    [canvas.width, canvas.height] = [wide, tall];
    canvas.style.width = `${wide / dense}px`;
    canvas.style.height = `${tall / dense}px`;
    pane.caption.style.width = `${wide / dense}px`;
  }
  paint(canvas.getContext("2d"), sceneOf(pane), wide / width);
}

function describe() {
  const view = shownView();
  const legend = view === "points" && !place() && state.pinned?.roi ? "bins" : view;
  if ($("legend").dataset.kind !== legend) {
    $("legend").dataset.kind = legend;
    $("legend").replaceChildren(...LEGENDS[legend](state.about.colors));
  }
  $("readout").textContent = ready() ? readout(legend) : "";
  for (const button of $("views").children) {
    const { name } = button.dataset;
    button.setAttribute("aria-pressed", String(name === view));
    button.disabled = !available(name);
    button.classList.toggle("busy", state.busy === name);
  }
}

function readout(legend) {
  const [pane] = state.panes;
  if (legend === "objects") return `${state.picture.width} × ${state.picture.height} pixels`;
  if (legend === "bins" || (state.pinned?.roi && legend !== "points")) {
    const box = state.pinned.roi.map((value) => Math.round(value)).join(", ");
    return `the box ${box} of ${state.pinned.object.name}, as the detector's head sees it`;
  }
  const at = legend === "points" ? place() : state.pinned;
  if (!at) return "";
  const { layer, node, layers } = positionAt(pane, at);
  const count = Math.min(state.depth, layers.length);
  const through = legend === "points" ? `, through ${count} layer${count > 1 ? "s" : ""}` : "";
  return `${shortName(layer.node)}, row ${node.y}, column ${node.x}${through}`;
}

function available(name) {
  if (name === "objects") return true;
  if (name === "points") return ready() || state.panes.some((pane) => pane.found.bins);
  return state.panes.some((pane) => pane.found[name]);
}

function show(view) {
  if (!available(view)) return;
  state.view = view;
  if (view === "points" && !place() && !state.pinned) state.cursor = bestPlace();
  if (view !== "points") state.cursor = null;
  if (view === "points" && state.pinned?.roi) state.cursor = null;
  draw();
}

function listObjects() {
  showClasses(state, listObjects);
  showObjects(state.panes, visible, state.pinned, choose);
  draw();
}

const shortName = (name) => name.replace("backbone.body.", "");

function say(text, isError = false) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

// Runs steps one after the other; a new run, Escape and the button stop the one before.
async function run(steps) {
  state.work?.abort();
  const work = new AbortController();
  state.work = work;
  $("cancel").hidden = false;
  try {
    await steps(work.signal);
  } catch (error) {
    if (state.work === work) say(error.name === "AbortError" ? "Cancelled" : error.message, error.name !== "AbortError");
  } finally {
    if (state.work === work) {
      state.work = null;
      state.busy = null;
      $("cancel").hidden = true;
      showStep(0, 0, 0);
      draw();
    }
  }
}

async function ask(pane, question, label, signal) {
  const began = performance.now();
  const name = state.panes.length > 1 ? `${letterOf(pane)}: ${label}` : label;
  const onProgress = (kind, { ahead, done, total }) => {
    if (kind === "waiting" && ahead) say(`${name} waits for ${ahead} other job${ahead > 1 ? "s" : ""}`);
    else say(name);
    showStep(done, total, (performance.now() - began) / 1000);
  };
  say(name);
  showStep(0, 0, 0);
  return server.ask({ picture: state.picture.id, network: pane.index, ...question }, { signal, onProgress });
}

// Steps are shown beside the status, because screen readers read the status out loud.
function showStep(done, total, seconds) {
  const known = Boolean(total && done);
  $("progress").hidden = !known;
  if (known) $("progress").value = done / total;
  const left = known ? (seconds / done) * (total - done) : 0;
  const wait = left < 1 ? "a moment" : `${Math.ceil(left)} s`;
  $("step").textContent = known ? `pass ${done} of at most ${total}, ${wait} left` : "";
}

function open(file) {
  if (!file) return;
  load(file.name, (signal) => {
    const { limits } = state.about;
    if (file.size > limits.bytes) {
      throw new Error(`${file.name} has more than ${limits.bytes / 2 ** 20} MB, which is the limit`);
    }
    say(`Sending ${file.name} …`);
    return server.upload(file, signal);
  });
}

function load(name, bring) {
  run(async (signal) => {
    const picture = await bring(signal);
    const image = await server.bitmapOf(picture.id);
    signal.throwIfAborted();
    Object.assign(state, { picture, name, view: "objects", hover: null, cursor: null, pinned: null });
    state.hidden.clear();
    setUpPanes(image);
    for (const pane of state.panes) {
      const { detections, bytes } = await ask(pane, { ask: "detections" }, "Looking for objects …", signal);
      takeObjects(pane, detections);
      pane.byPixel = new Int16Array(bytes);
      listObjects();
    }
    for (const pane of state.panes) {
      const layers = await ask(pane, { ask: "layers" }, "Reading where its layers sample …", signal);
      pane.layers = { ...layers, values: new Float32Array(layers.bytes) };
    }
    setUpLayers();
    const counts = state.panes.map((pane) => visible(pane).length);
    const objects = counts.length === 1 && counts[0] === 1 ? "object" : "objects";
    const shrunk = picture.original[0] > picture.width ? ` Shrunk from ${picture.original.join(" × ")} pixels.` : "";
    say(`${counts.join(" and ")} ${objects} found. Point at the picture; click to ask about a place.${shrunk}`);
  });
}

function setUpPanes(image) {
  const muted = mutedOf(image);
  state.panes = state.about.networks.map((network, index) => {
    const canvas = make("canvas", { tabindex: 0, role: "img", "aria-describedby": "readout" });
    canvas.setAttribute("aria-label", `${state.name}, seen by ${network.name}. Arrow keys move, Enter asks.`);
    const caption = make("figcaption");
    const pane = { network, index, image, muted, canvas, caption, objects: [], byPixel: [], results: [], layers: null, found: {} };
    if (state.about.networks.length > 1) caption.append(make("span", { class: "letter" }, letterOf(pane)));
    caption.append(make("b", {}, network.name), network.weights ?? "random weights");
    listen(pane, { draw, say, pin });
    return pane;
  });
  $("panes").replaceChildren(...state.panes.map((pane) => make("figure", { class: "pane" }, pane.caption, pane.canvas)));
  $("drop").hidden = true;
  for (const id of ["panes", "below", "panel"]) $(id).hidden = false;
  showNumbers(state.panes);
  draw();
}

function takeObjects(pane, results) {
  const { palette } = state.about;
  const many = pane.network.classes.length > 1;
  pane.results = results;
  pane.objects = results.map((result, index) => {
    const color = palette[(many ? result.label : index) % palette.length];
    const around = windowOf(result.box);
    const mask = result.segmentation ? decodeMask(result.segmentation, around) : null;
    return {
      ...result,
      around,
      mask,
      outline: mask && pathOf(loopsOf(mask, around), 2),
      color: `rgb(${color.join(" ")})`,
      classColor: `rgb(${palette[result.label % palette.length].join(" ")})`,
      ink: inkOn(color),
    };
  });
}

// The pixels of a box, and a few around it: masks may be a pixel wider.
function windowOf([x1, y1, x2, y2]) {
  const { width, height } = state.picture;
  const [left, top] = [Math.max(0, Math.floor(x1) - 2), Math.max(0, Math.floor(y1) - 2)];
  const [right, bottom] = [Math.min(width, Math.ceil(x2) + 2), Math.min(height, Math.ceil(y2) + 2)];
  return { left, top, width: Math.max(1, right - left), height: Math.max(1, bottom - top) };
}

function setUpLayers() {
  const { layers } = state.panes[0].layers;
  const names = layers.map((layer) => layer.name);
  if (!names.includes(state.layer)) state.layer = names.at(-1);
  fillSelect($("layer"), layers.map(({ name, node }) => [name, shortName(node)]), state.layer);
  setUpDepths();
}

function setUpDepths() {
  const counts = [];
  for (const layer of layersUpTo(state.panes[0]).toReversed()) {
    const count = (counts.at(-1) ?? 1) * layer.taps.length;
    if (count > MOST_SAMPLES || counts.length === 4) break;
    counts.push(count);
  }
  state.depth = Math.min(state.wishedDepth, counts.length);
  const text = (count, i) => [String(i + 1), `${i ? `${i + 1} layers` : "this layer"}: ${count.toLocaleString("en")} samples`];
  fillSelect($("depth"), counts.map(text), String(state.depth));
}

// Pins a place, and asks the server about it.
function pin(pinned) {
  state.pinned = pinned;
  for (const pane of state.panes) pane.found = {};
  state.view = "points";
  state.cursor = null;
  if (pinned.roi) state.hover = null;
  showNumbers(state.panes);
  listObjects();
  run(async (signal) => {
    const point = pinned.roi ? null : [pinned.x, pinned.y];
    const asked = state.panes.map((pane) => ({ node: nodeOf(pane), point }));
    if (pinned.roi) {
      for (const pane of state.panes) {
        pane.found.bins = await ask(pane, { ask: "bins", node: asked[pane.index].node }, "Where its bins are …", signal);
        draw();
      }
    }
    state.busy = "field";
    for (const pane of state.panes) {
      const answer = await ask(pane, { ask: "field", ...asked[pane.index] }, "Receptive field …", signal);
      const { centre, response, object, object_index, summaries, bytes } = answer;
      const { width, height } = state.picture;
      const heat = heatOf(new Uint8Array(bytes), width, height, state.about.colors);
      pane.found.field = { response, centre, object, object_index, summary: summaries.field, heat };
      if (state.view === "points" && !pinned.roi) state.view = "field";
      showNumbers(state.panes);
      draw();
    }
    state.busy = "region";
    draw();
    for (const pane of state.panes) {
      const answer = await ask(pane, { ask: "region", ...asked[pane.index] }, "Saliency region …", signal);
      const { region, object, object_index, summaries } = answer;
      const cutOut = cutOutOf(pane.image, decodeMask(region.mask), region.fill);
      pane.found.region = { ...region, object, object_index, summary: summaries.region, cutOut };
      showNumbers(state.panes);
      draw();
    }
    const escape = matchMedia("(hover: none)").matches ? "" : " Escape clears the position."; // a phone has no such key
    say(`Receptive field and saliency region are there.${escape}`);
  });
}

const choose = (pane, object) => ready() && pin({ roi: object.box, pane, object });

function letGo() {
  if (state.work) {
    state.work.abort();
    return;
  }
  for (const pane of state.panes) pane.found = {};
  Object.assign(state, { pinned: null, cursor: null, view: "objects" });
  showNumbers(state.panes);
  listObjects();
  say("");
}

const THEMES = ["system", "light", "dark"];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  $("theme").setAttribute("aria-label", `Theme: ${theme === "system" ? "as the system" : theme}`);
  $("theme").title = $("theme").getAttribute("aria-label");
  $("theme").textContent = { system: "◐", light: "☀", dark: "☾" }[theme];
}

function saveFiles() {
  const stem = () => state.name.replace(/\.[^.]*$/, "") || "picture";
  $("save-png").addEventListener("click", async () => {
    const view = shownView();
    const kind = view === "points" && !place() && state.pinned?.roi ? "bins" : view;
    const caption = { text: LEGENDS[kind](state.about.colors)[0].textContent.replace(/^0/, ""), scale: !["objects", "region"].includes(kind) };
    save(await pictureOf(state.panes, sceneOf, state.about.colors, caption), `${stem()}-${kind}.png`);
  });
  $("save-json").addEventListener("click", () => {
    const numbers = numbersOf(state, nodeOf, (pane) => samplesAt(pane));
    save(new Blob([JSON.stringify(numbers, null, 1)], { type: "application/json" }), `${stem()}.json`);
  });
}

async function start() {
  setTheme(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "system");
  $("theme").addEventListener("click", () =>
    setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]));
  state.about = await server.about();
  $("views").append(...Object.entries(VIEWS).map(([name, text]) =>
    make("button", { type: "button", "data-name": name, "aria-pressed": "false", onclick: () => show(name) }, text)));
  const random = state.about.networks.filter((network) => network.weights === null).map((network) => network.name);
  $("warning").hidden = !random.length;
  $("warning").textContent = `${random.join(" and ")}: random weights, so what is shown means nothing.`;
  $("file").addEventListener("change", ({ target }) => {
    open(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  $("example").addEventListener("click", () => load("scene.png", (signal) => server.example(signal)));
  $("score").addEventListener("input", ({ target }) => {
    state.score = Number(target.value);
    $("score-value").textContent = state.score.toFixed(2);
    listObjects();
  });
  const resettle = () => {
    for (const pane of state.panes) pane.found = {};
    if (state.pinned && !state.pinned.roi) state.view = "points";
    showNumbers(state.panes);
    draw();
  };
  $("layer").addEventListener("change", ({ target }) => {
    state.layer = target.value;
    setUpDepths();
    resettle();
  });
  $("depth").addEventListener("change", ({ target }) => {
    state.depth = state.wishedDepth = Number(target.value);
    draw();
  });
  $("cancel").addEventListener("click", () => state.work?.abort());
  listenToKeys({ letGo, show: (number) => number in Object.keys(VIEWS) && show(Object.keys(VIEWS)[number]) });
  new ResizeObserver(draw).observe($("panes"));
  addEventListener("resize", draw);
  takeDrops(open);
  saveFiles();
}

start().catch((error) => say(`The page can't start: ${error.message}`, true));
