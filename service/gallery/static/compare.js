// The images of a comparison, with the boxes of both models. The address is the state of the page.

import { draw } from "./overlay.js";

const PAGE_SIZE = 60;
const CHANGES = ["lost", "gained", "moved"];
const DEFAULTS = { show: "changed", label: "", order: "disagreement", page: 1, a: true, b: true, kept: false };

const report = JSON.parse(document.getElementById("data").textContent);
const version = Math.random().toString(36).slice(2); // images of another report are not reused
const controls = document.getElementById("controls");
const grid = document.getElementById("grid");
const shownText = document.getElementById("shown");
const dialog = document.getElementById("large");
report.results.forEach((result, index) => { result.index = index; });

let state = { ...DEFAULTS };
let chosen = []; // the results that the filters select, in order
let opened = null; // position in `chosen` of the large image

function node(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** Return what a result has of one kind, with the label that the filter asks for. */
function ofKind(result, kind) {
  return result[kind].filter((item) => !state.label || item.label === state.label);
}

/** Return each detection to draw: its side, kind, label, confidence and box. */
function detections(result) {
  const found = [];
  const add = (side, kind, label, item) => {
    if (state[side]) found.push({ side, kind, label, confidence: item.confidence, box: item.box });
  };
  for (const kind of state.kept ? ["kept", "moved"] : ["moved"]) {
    for (const pair of ofKind(result, kind)) {
      add("a", kind, pair.label, pair.a);
      add("b", kind, pair.label, pair.b);
    }
  }
  for (const item of ofKind(result, "lost")) add("a", "lost", item.label, item);
  for (const item of ofKind(result, "gained")) add("b", "gained", item.label, item);
  return found;
}

function drawBoxes(svg, result) {
  const items = detections(result);
  const drawn = draw(svg, { width: result.width, height: result.height, detections: items, faint: [] });
  drawn.forEach((each, index) => each.node.classList.add(`side-${items[index].side}`, items[index].kind));
}

/** Return the counts of a result as text, for example "1 lost, 2 gained". */
function counts(result) {
  const texts = CHANGES.map((kind) => [ofKind(result, kind).length, kind])
    .filter(([count]) => count)
    .map(([count, kind]) => `${count} ${kind}`);
  return texts.join(", ") || "no difference";
}

function watch(frame, image) {
  image.addEventListener("error", () => {
    frame.classList.add("failed");
    frame.querySelector(".failure")?.remove();
    frame.append(node("span", { className: "failure", textContent: "The image cannot be shown" }));
  });
  image.addEventListener("load", () => {
    frame.classList.remove("failed");
    frame.querySelector(".failure")?.remove();
  });
}

function card(result, position) {
  const image = node("img", {
    src: `/images/${result.index}/thumbnail?v=${version}`,
    alt: `${result.name}: ${counts(result)}`,
    width: result.width, height: result.height, loading: "lazy", decoding: "async",
  });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "overlay");
  svg.setAttribute("aria-hidden", "true");
  drawBoxes(svg, result);
  const frame = node("span", { className: "frame" }, image, svg);
  frame.style.aspectRatio = `${result.width} / ${result.height}`;
  watch(frame, image);
  const name = node("bdi", { className: "name-of-image", textContent: result.name });
  const what = node("span", {
    className: "what",
    textContent: `${counts(result)} · disagreement ${result.disagreement.toFixed(2)}`,
  });
  const button = node("button", { type: "button" }, frame, name, what);
  button.addEventListener("click", () => open(position));
  return node("li", {}, button);
}

const ORDERS = {
  disagreement: (a, b) => b.disagreement - a.disagreement,
  agreement: (a, b) => a.disagreement - b.disagreement,
  name: (a, b) => (a.name < b.name ? -1 : Number(a.name > b.name)),
};

function isShown(result) {
  const kinds = { changed: CHANGES, all: null }[state.show];
  if (kinds === null) return !state.label || [...CHANGES, "kept"].some((kind) => ofKind(result, kind).length);
  return (kinds ?? [state.show]).some((kind) => ofKind(result, kind).length);
}

function render() {
  chosen = report.results.filter(isShown).sort((a, b) => ORDERS[state.order](a, b) || a.index - b.index);
  const pages = Math.max(1, Math.ceil(chosen.length / PAGE_SIZE));
  state.page = Math.min(Math.max(state.page, 1), pages);
  const first = (state.page - 1) * PAGE_SIZE;
  const cards = chosen.slice(first, first + PAGE_SIZE).map((result, i) => card(result, first + i));
  grid.replaceChildren(...cards);
  shownText.textContent = chosen.length
    ? `${chosen.length} of ${report.images} images`
    : "No image matches. Choose “all images” and “all labels”.";
  document.getElementById("number").textContent = `Page ${state.page} of ${pages}`;
  document.getElementById("previous").disabled = state.page === 1;
  document.getElementById("next").disabled = state.page === pages;
}

/** Draw the boxes again, without loading images again. */
function redraw() {
  grid.querySelectorAll("svg.overlay").forEach((svg, i) => {
    drawBoxes(svg, chosen[(state.page - 1) * PAGE_SIZE + i]);
  });
  if (dialog.open) fill();
}

function readState() {
  const given = new URLSearchParams(location.search);
  state = { ...DEFAULTS };
  for (const name of ["show", "label", "order"]) {
    const values = Array.from(controls.elements[name].options, (option) => option.value);
    if (values.includes(given.get(name))) state[name] = given.get(name);
    controls.elements[name].value = state[name];
  }
  for (const name of ["a", "b", "kept"]) {
    if (given.has(name)) state[name] = given.get(name) === "1";
    controls.elements[name].checked = state[name];
  }
  state.page = Number.parseInt(given.get("page"), 10) || 1;
}

function writeState(isNew) {
  const values = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== DEFAULTS[name]) values.set(name, typeof value === "boolean" ? Number(value) : value);
  }
  const address = values.size ? `?${values}` : location.pathname;
  history[isNew ? "pushState" : "replaceState"](null, "", address);
}

function turn(step) {
  const before = state.page;
  state.page += step;
  render();
  if (state.page === before) return;
  writeState(true);
  grid.querySelector("button")?.focus();
}

function cell(text) {
  return node("td", { textContent: text });
}

function percent(value) {
  return value ? value.toFixed(2) : "none";
}

/** Return the rows of the table of differences: kind, label, confidences, IoU. */
function rows(result) {
  const found = [];
  for (const item of result.lost) found.push(["lost", item, percent(item.confidence), percent(item.other_confidence), ""]);
  for (const item of result.gained) found.push(["gained", item, percent(item.other_confidence), percent(item.confidence), ""]);
  for (const kind of state.kept ? ["moved", "kept"] : ["moved"]) {
    for (const pair of result[kind]) {
      found.push([kind, pair, percent(pair.a.confidence), percent(pair.b.confidence), pair.iou.toFixed(2)]);
    }
  }
  return found.filter(([, item]) => !state.label || item.label === state.label);
}

/** Return the boxes of a row. */
function boxesOf(kind, item) {
  if (kind === "lost" || kind === "gained") return [item.box];
  return [item.a.box, item.b.box];
}

function light(svg, items, row, kind, item, isLit) {
  const boxes = boxesOf(kind, item).map(String);
  row.classList.toggle("lit", isLit);
  svg.classList.toggle("with-lit", isLit);
  [...svg.children].forEach((group, i) => {
    const isOfRow = items[i].kind === kind && items[i].label === item.label && boxes.includes(String(items[i].box));
    group.classList.toggle("lit", isLit && isOfRow);
  });
}

function fill() {
  const result = chosen[opened];
  const frame = dialog.querySelector(".frame");
  const svg = dialog.querySelector("svg");
  document.getElementById("large-name").textContent = result.name;
  frame.style.aspectRatio = `${result.width} / ${result.height}`;
  frame.style.maxWidth = `calc(70vh * ${result.width / result.height})`;
  const image = dialog.querySelector("img");
  const source = `/images/${result.index}/large?v=${version}`;
  if (image.getAttribute("src") !== source) image.src = source;
  image.alt = `${result.name}: ${counts(result)}`;
  drawBoxes(svg, result);
  svg.classList.remove("with-lit");
  const items = detections(result);
  const body = document.getElementById("changes");
  body.replaceChildren(...rows(result).map(([kind, item, a, b, iou]) => {
    const label = node("td", {}, node("bdi", { textContent: item.label }));
    const row = node("tr", {}, node("th", { scope: "row", textContent: kind }), label, cell(a), cell(b), cell(iou));
    row.addEventListener("pointerenter", () => light(svg, items, row, kind, item, true));
    row.addEventListener("pointerleave", () => light(svg, items, row, kind, item, false));
    return row;
  }));
  for (const button of dialog.querySelectorAll("[data-step]")) {
    button.disabled = !chosen[opened + Number(button.dataset.step)];
  }
}

function open(position) {
  opened = position;
  fill();
  dialog.showModal();
}

function step(by) {
  if (!chosen[opened + by]) return;
  opened += by;
  fill();
}

/** Move the focus between the cards of the grid. */
function move(key) {
  const buttons = [...grid.querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const target = at < 0 ? buttons[0] : buttons[at + by];
  target?.focus();
  return Boolean(target);
}

function onKey(event) {
  const isTyping = event.target.closest?.("select, input");
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping) return;
  if (dialog.open) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  } else if (event.key.startsWith("Arrow")) {
    if (move(event.key)) event.preventDefault();
  } else if (event.key === "[") turn(-1);
  else if (event.key === "]") turn(1);
  if (event.key === "k") {
    state.kept = !state.kept;
    controls.elements.kept.checked = state.kept;
    writeState(false);
    redraw();
  }
}

for (const { label } of report.labels) controls.elements.label.append(node("option", { value: label, textContent: label }));
controls.addEventListener("submit", (event) => event.preventDefault());
controls.addEventListener("change", (event) => {
  const { name, type, checked, value } = event.target;
  state[name] = type === "checkbox" ? checked : value;
  if (type === "checkbox") {
    writeState(false);
    redraw();
    return;
  }
  state.page = 1;
  render();
  writeState(true);
});
document.getElementById("previous").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
document.getElementById("close").addEventListener("click", () => dialog.close());
for (const button of dialog.querySelectorAll("[data-step]")) {
  button.addEventListener("click", () => step(Number(button.dataset.step)));
}
dialog.addEventListener("close", () => {
  const button = grid.querySelectorAll("button")[opened - (state.page - 1) * PAGE_SIZE];
  (button ?? grid.querySelector("button"))?.focus();
});
document.addEventListener("keydown", onKey);
addEventListener("popstate", () => { readState(); render(); });
watch(dialog.querySelector(".frame"), dialog.querySelector("img"));
readState();
render();
