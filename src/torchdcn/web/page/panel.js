// The parts beside and below the picture: objects, layers, legend, numbers.

export const $ = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function swatch(color) {
  const dot = make("span", { class: "swatch", "aria-hidden": "true" });
  dot.style.background = color;
  return dot;
}

export const letterOf = (pane) => String.fromCharCode(65 + pane.index);

// A switch for each class that was found.
export function showClasses({ panes, score, hidden, picture }, changed) {
  const found = new Map();
  for (const object of panes.flatMap((pane) => pane.objects)) {
    if (object.score >= score && !found.has(object.name)) found.set(object.name, object);
  }
  const names = [...found.keys()].sort();
  const key = [picture.id, ...names].join();
  if ($("classes").dataset.key === key) return; // a switch that is being used must not be replaced
  $("classes").dataset.key = key;
  const labels = names.map((name) => {
    const box = make("input", {
      type: "checkbox",
      checked: !hidden.has(name),
      onchange: ({ target }) => {
        if (target.checked) hidden.delete(name);
        else hidden.add(name);
        changed();
      },
    });
    return make("label", {}, box, swatch(found.get(name).classColor), name);
  });
  $("classes").replaceChildren(...labels);
}

export function showObjects(panes, visible, pinned, choose) {
  const rows = panes.flatMap((pane) => visible(pane).map((object) => make("li", {}, make("button", {
    type: "button",
    "aria-pressed": String(pinned?.pane === pane && pinned.object === object),
    onclick: () => choose(pane, object),
  },
  swatch(object.color),
  ...(panes.length > 1 ? [make("span", { class: "letter" }, letterOf(pane))] : []),
  make("span", { class: "name" }, object.name),
  make("span", {}, object.score.toFixed(2))))));
  const none = make("li", { class: "empty" }, "None that score as much");
  const focused = [...$("objects").querySelectorAll("button")].indexOf(document.activeElement);
  $("objects").replaceChildren(...(rows.length ? rows : [none]));
  if (focused >= 0) $("objects").querySelectorAll("button")[focused]?.focus();
}

export function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, selected: value === chosen }, text)));
}

function strip(colors, text) {
  const canvas = make("canvas", { width: 120, height: 10, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 120; x++) {
    context.fillStyle = `rgb(${colors[Math.round((255 * x) / 119)].join(" ")})`;
    context.fillRect(x, 0, 1, 10);
  }
  return make("span", {}, "0", canvas, text);
}

const sign = (mark, text) => make("span", {}, make("span", { "aria-hidden": "true" }, mark), text);

export const LEGENDS = {
  objects: () => [make("span", {}, "What the network finds; point at the picture to see where it samples")],
  points: (colors) => [
    strip(colors, "most: a sample's weight, the product of its masks"),
    sign("✛", "regular convolution"),
    sign("◯", "position"),
  ],
  bins: (colors) => [
    strip(colors, "most: a bin's modulation"),
    sign("—", "how far it moved"),
    sign("▭", "object's box"),
  ],
  field: (colors) => [
    strip(colors, "most: how a pixel's colour moves the response; half way is ¼"),
    sign("┄", "object"),
  ],
  region: () => [
    sign("▣", "kept: enough for the network to say the same"),
    sign("▒", "all else has the mean colour"),
  ],
};

const percent = (value, digits) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));

export function showNumbers(panes) {
  const any = panes.some((pane) => pane.found.field || pane.found.region);
  $("numbers").hidden = !any;
  if (!any) return;
  const row = (name, cells) => make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((c) => make("td", {}, c)));
  const head = (name) => make("tr", { class: "head" }, make("th", { scope: "row", colspan: panes.length + 1 }, name));
  const cells = (kind, tell) => panes.map((pane) => (pane.found[kind] ? tell(pane.found[kind]) : "…"));
  const rows = [
    head("Receptive field"),
    row("on the object", cells("field", (found) => percent(found.summary?.inside, 0))),
    row("spread, px", cells("field", (found) => fixed(found.summary?.radius, 1))),
    row("entropy, bits", cells("field", (found) => fixed(found.summary?.entropy, 1))),
    head("Saliency region"),
    row("of the image", cells("region", (found) => percent(found.area, found.area < 0.01 ? 2 : 1))),
    row("on the object", cells("region", (found) => percent(found.summary?.inside, 0))),
    row("error", cells("region", (found) => fixed(found.error, 3))),
  ];
  const names = panes.length > 1 ? panes.map((pane) => make("th", { scope: "col" }, letterOf(pane))) : [];
  const [tableHead] = $("numbers").getElementsByTagName("thead");
  const [body] = $("numbers").getElementsByTagName("tbody");
  tableHead.replaceChildren(...(names.length ? [make("tr", {}, make("th", {}, ""), ...names)] : []));
  body.replaceChildren(...rows);
}
