// Pointer, keys, and dropped files.
import { centreOf } from "./sampling.js";
import { bestPlace, place, positionAt, ready, state } from "./state.js";

// Listens on a pane's picture. `act` has draw(), say(text) and pin(place).
export function listen(pane, act) {
  const { canvas } = pane;
  canvas.addEventListener("pointermove", (event) => {
    if (!ready()) return;
    state.hover = placeOf(event, canvas);
    act.draw();
  });
  canvas.addEventListener("pointerleave", () => {
    state.hover = null;
    act.draw();
  });
  canvas.addEventListener("click", (event) => ready() && act.pin(placeOf(event, canvas)));
  canvas.addEventListener("keydown", (event) => onKey(event, pane, act));
  canvas.addEventListener("blur", () => {
    if (state.view === "objects") state.cursor = null;
    act.draw();
  });
}

function placeOf(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const along = (value, start, length, size) => Math.min(Math.max(((value - start) / length) * size - 0.5, 0), size - 1);
  return {
    x: along(event.clientX, box.left, box.width, state.picture.width),
    y: along(event.clientY, box.top, box.height, state.picture.height),
  };
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(event, pane, act) {
  if (!ready() || event.ctrlKey || event.metaKey || event.altKey) return;
  const from = place() ?? bestPlace();
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    act.pin(from);
  } else if (event.key in MOVES) {
    event.preventDefault();
    const { layer, node } = positionAt(pane, from);
    const [right, down] = MOVES[event.key].map((way) => way * (event.shiftKey ? 4 : 1));
    const next = {
      y: Math.min(Math.max(node.y + down, 0), layer.output[0] - 1),
      x: Math.min(Math.max(node.x + right, 0), layer.output[1] - 1),
    };
    const [x, y] = centreOf(layer, pane.layers, next);
    Object.assign(state, { cursor: { x, y }, hover: null, view: state.view === "objects" ? "objects" : "points" });
    act.draw();
    act.say(`row ${next.y}, column ${next.x}`);
  }
}

// Keys that work wherever the focus is. `act` has letGo() and show(number).
export function listenToKeys(act) {
  addEventListener("keydown", (event) => {
    if (!state.panes.length) return;
    if (event.key === "Escape") act.letGo();
    const { target } = event;
    const typing = target.tagName === "SELECT" || (target.tagName === "INPUT" && target.type !== "checkbox");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key >= "1" && event.key <= "9") act.show(Number(event.key) - 1);
  });
}

export function takeDrops(open) {
  let depth = 0; // entering a child is told before the parent is left
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("dragenter", (event) => {
    event.preventDefault();
    mark(1);
  });
  addEventListener("dragleave", () => mark(-1));
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    open(event.dataTransfer.files[0]);
  });
}
