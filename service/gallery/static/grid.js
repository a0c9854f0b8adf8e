// The grid of results. The address of the page is its whole state.

import { Thresholds, apply, color, draw } from "./overlay.js";

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const grid = byId("grid");
const filters = byId("filters");
const FIELDS = ["order", "shown", "source", "zone", "day", "until", "bucket", "prefix"]; // of the form
const FILTERS = [...FIELDS, "label", "error_code"];
const NAMES = {
  shown: "Status", source: "Source", zone: "Zone", day: "Day of capture", until: "Processed before",
  bucket: "Bucket", prefix: "Prefix", label: "Label", error_code: "Error code",
};
const OUTCOMES = { found: "found", nothing_found: "nothing found", failed: "failed", parked: "parked" };
const MARKS = { found: "●", nothing_found: "○", failed: "✕", parked: "‖" };
const LISTED = "yolo-batch-list"; // key in sessionStorage: this page's results, for the arrow keys of the image page
const MAX_LABELS = 200; // rows of the list
const COUNTED = 20; // labels of one request
const PHONE_PIXELS = 640;

let state = new URLSearchParams(location.search);
let cards = []; // of this page: {card, drawn, node, item, below}
let following = null;
let loading = null; // AbortController of the request under way
let frame = 0;
let chosenThresholds = new Thresholds();

function node(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(className, text, onClick) {
  const made = node("button", className, text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

// --- The address

/** Return the arguments that the server reads. */
function query(extra = {}) {
  const found = new URLSearchParams();
  for (const name of FILTERS) if (state.get(name)) found.set(name, state.get(name));
  for (const [name, value] of Object.entries(extra)) if (value) found.set(name, value);
  return found;
}

/** Show another page: of another filter, or of a cursor. `depth` counts how far "back" can go. */
function go(changes, { cursor = null } = {}) {
  const next = new URLSearchParams(state);
  for (const [name, value] of Object.entries({ ...changes, cursor })) {
    if (value) next.set(name, value);
    else next.delete(name);
  }
  const text = next.toString();
  history.pushState({ depth: cursor ? depth() + 1 : 0 }, "", text ? `?${text}` : location.pathname);
  state = next;
  load();
}

function depth() {
  return history.state?.depth ?? 0;
}

/** Write the thresholds to the address, without a new page. */
function rememberThresholds() {
  state.delete("threshold");
  state.delete("threshold_of");
  if (chosenThresholds.value !== null) state.set("threshold", String(chosenThresholds.value));
  for (const [label, value] of chosenThresholds.ofLabel) state.append("threshold_of", `${label}:${value}`);
  const text = state.toString();
  history.replaceState(history.state, "", text ? `?${text}` : location.pathname);
  for (const { node: card, card: { id } } of cards) card.href = address(id);
  showExports();
}

function readThresholds() {
  const value = (text) => {
    const number = text === null || text.trim() === "" ? NaN : Number(text);
    return number >= 0 && number <= 1 ? number : null;
  };
  const ofLabel = new Map();
  for (const each of state.getAll("threshold_of")) {
    const at = each.lastIndexOf(":"); // a label can have colons, too
    const own = value(each.slice(at + 1));
    if (at >= 0 && own !== null) ofLabel.set(each.slice(0, at), own);
  }
  return new Thresholds(value(state.get("threshold")), ofLabel);
}

function address(id) {
  const text = state.toString();
  return data.image.replace("ID", () => encodeURIComponent(id)) + (text ? `?${text}` : "");
}

// --- Cards

function framed(card, item) {
  const frameNode = node("span", "frame");
  if (!card.thumbnail) {
    const hole = node("span", "hole");
    hole.append(node("bdi", "", card.error?.message || card.error?.code || "There is no image."));
    frameNode.append(hole);
    return { frameNode, drawn: [] };
  }
  frameNode.classList.add("loading");
  const image = node("img");
  image.alt = card.alt;
  image.loading = "lazy";
  image.decoding = "async";
  if (card.width && card.height) Object.assign(image, { width: card.width, height: card.height });
  image.addEventListener("load", () => frameNode.classList.remove("loading"));
  image.addEventListener("error", () => failed(frameNode, image, card, item));
  image.src = card.thumbnail;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "overlay");
  svg.setAttribute("aria-hidden", "true");
  const drawn = draw(svg, card, { lines: 18 });
  svg.setAttribute("preserveAspectRatio", "xMidYMid meet"); // where `object-fit` puts the image
  frameNode.append(image, svg);
  return { frameNode, drawn };
}

/** Say why there is no image in place of a hole. The server's page has the reason. */
async function failed(frameNode, image, card, item) {
  frameNode.classList.remove("loading");
  const hole = node("span", "hole", "The image failed to load.");
  const again = button("again", "Load again", () => {
    hole.remove();
    again.remove();
    image.hidden = false;
    frameNode.classList.add("loading");
    image.src = `${card.thumbnail}?again=${Date.now()}`;
  });
  image.hidden = true;
  frameNode.append(hole);
  item.append(again); // not inside the link
  const response = await fetch(card.thumbnail).catch(() => null);
  if (response?.status === 404) {
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    hole.textContent = page.querySelector("main p")?.textContent ?? "There is no image.";
  }
}

/** Return the labels that the service kept, each with its color. */
function labelLine(card) {
  const line = node("span", "card-labels");
  const kept = [...card.detections, ...card.classes].map((each) => each.label);
  for (const label of [...new Set(kept)].slice(0, 3)) {
    const swatch = node("span", "swatch");
    swatch.style.background = color(label);
    line.append(swatch, node("bdi", "", label));
  }
  return line;
}

function makeCard(card) {
  const item = node("div", "item");
  item.setAttribute("role", "listitem");
  const link = node("a", "card");
  link.href = address(card.id);
  const { frameNode, drawn } = framed(card, item);
  const outcome = card.shown ?? "unreadable";
  const caption = node("span", "caption");
  const name = node("bdi", "name", card.name ?? card.id);
  name.title = card.name ?? card.id;
  const line = node("span", `outcome ${outcome}`);
  const mark = node("span", "mark", MARKS[outcome] ?? "?");
  mark.setAttribute("aria-hidden", "true");
  line.append(mark, " ", OUTCOMES[outcome] ?? "The document is unreadable.");
  if (card.error?.code) line.append(": ", node("bdi", "", card.error.code));
  if (card.redacted) line.append(" · redacted copy");
  const below = node("span", "soft below");
  caption.append(name, line, labelLine(card), below);
  link.append(frameNode, caption);
  item.append(link);
  return { card, drawn, node: link, item, below };
}

function skeletons() {
  grid.setAttribute("aria-busy", "true");
  grid.replaceChildren(...Array.from({ length: Math.min(data.page_size, 24) }, () => {
    const item = node("div", "item skeleton");
    item.setAttribute("aria-hidden", "true");
    return item;
  }));
}

// --- Thresholds

/** Return whether detections above a card's thresholds may be missing, because they were not stored. */
function isCut(card, lowest) {
  if (card.shown !== "found" && card.shown !== "nothing_found") return false;
  if (card.faint_cut !== null) return card.faint_cut > lowest;
  return !card.classes.length && lowest < Math.min(1, ...card.detections.map((each) => each.confidence));
}

export function applyThresholds(chosen = chosenThresholds) {
  const lowest = Math.min(chosen.value ?? 1, ...chosen.ofLabel.values());
  let total = 0;
  let cut = 0;
  for (const each of cards) {
    const { below } = apply(each.drawn, chosen);
    total += below;
    cut += isCut(each.card, lowest);
    if (each.belowCount !== below) {
      each.belowCount = below;
      each.below.textContent = below ? `${below} below the threshold` : "";
    }
  }
  const images = cut === 1 ? "1 image" : `${cut} images`;
  const more = cut ? ` Less confident detections of ${images} were not recorded.` : "";
  byId("below").textContent = `${total} ${total === 1 ? "detection" : "detections"} below the threshold.${more}`;
}

/** Apply the thresholds once before the next frame, however often a slider moves. */
function applySoon() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => applyThresholds());
}

function thresholdText(value) {
  return value === null ? "as kept" : value.toFixed(2);
}

function showThreshold() {
  byId("threshold").value = chosenThresholds.value ?? 0;
  byId("threshold-text").textContent = thresholdText(chosenThresholds.value);
}

byId("threshold").addEventListener("input", (event) => {
  chosenThresholds.value = event.target.valueAsNumber;
  byId("threshold-text").textContent = thresholdText(chosenThresholds.value);
  for (const each of document.querySelectorAll(".label-row")) showOwn(each);
  applySoon();
});
byId("threshold").addEventListener("change", rememberThresholds);
byId("threshold-reset").addEventListener("click", () => {
  chosenThresholds = new Thresholds();
  rememberThresholds();
  showThreshold();
  showLabels();
  applyThresholds();
});

// --- Labels

function labelsInView() {
  const found = new Set(chosenThresholds.ofLabel.keys());
  if (state.get("label")) found.add(state.get("label"));
  for (const { card } of cards) {
    for (const each of [...card.detections, ...card.faint, ...card.classes]) found.add(each.label);
  }
  return [...found].sort();
}

/** Show the own threshold of a row's label, or that of all labels. */
function showOwn(row) {
  const own = chosenThresholds.ofLabel.get(row.dataset.label);
  row.querySelector("input").value = own ?? chosenThresholds.value ?? 0;
  row.querySelector("output").textContent = own === undefined ? "same as all" : own.toFixed(2);
}

function labelRow(label) {
  const row = node("div", "label-row");
  row.dataset.label = label;
  const swatch = node("span", "swatch");
  swatch.style.background = color(label);
  const name = button("link", undefined, () => chooseLabel(label));
  name.append(node("bdi", "", label || "(no name)"));
  const count = node("span", "soft count");
  count.dataset.label = label;
  const slider = Object.assign(node("input"), { type: "range", min: 0, max: 1, step: 0.01 });
  slider.setAttribute("aria-label", `Threshold of ${label}`);
  slider.addEventListener("input", () => {
    chosenThresholds.ofLabel.set(label, slider.valueAsNumber);
    showOwn(row);
    applySoon();
  });
  slider.addEventListener("change", rememberThresholds);
  row.append(swatch, name, count, slider, node("output", "soft"));
  showOwn(row);
  return row;
}

function showLabels() {
  byId("label-chosen").textContent = state.get("label") ?? "any";
  byId("label-list").replaceChildren(...labelsInView().slice(0, MAX_LABELS).map(labelRow));
  search();
}

function search() {
  const text = byId("label-search").value.trim().toLowerCase();
  for (const row of byId("label-list").children) {
    row.hidden = !row.dataset.label.toLowerCase().includes(text);
  }
}

function chooseLabel(label) {
  byId("label-panel").open = false;
  byId("label-search").value = "";
  byId("label-panel").querySelector("summary").focus();
  go({ label });
}

/** Ask for the counts of the labels in view, some at a time. The server keeps them for a minute. */
async function showCounts() {
  const shownCards = cards;
  const labels = labelsInView().filter((label) => label && label.length <= 500).slice(0, MAX_LABELS);
  let reads = 0;
  for (let start = 0; start < labels.length && byId("label-panel").open; start += COUNTED) {
    const asked = query();
    asked.delete("label");
    for (const label of labels.slice(start, start + COUNTED)) asked.append("of", label);
    const body = await fetch(`${data.counts}?${asked}`)
      .then((response) => response.json())
      .catch(() => ({ error: "The counts failed to load." }));
    if (cards !== shownCards) return; // another page
    if (body.error) {
      byId("count-cost").textContent = body.error;
      return;
    }
    reads += body.reads;
    for (const each of document.querySelectorAll(".count")) {
      const { label } = each.dataset; // a label may be "constructor"
      if (Object.hasOwn(body.counts, label)) each.textContent = body.counts[label].toLocaleString("en");
    }
    const noun = reads === 1 ? "read" : "reads";
    byId("count-cost").textContent = `The counts cost ${reads} ${noun}. They are kept for a minute.`;
  }
}

byId("label-panel").addEventListener("toggle", (event) => {
  if (event.target.open) showCounts();
});
byId("label-search").addEventListener("input", search);
byId("label-search").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  const first = [...byId("label-list").children].find((row) => !row.hidden);
  const label = first ? first.dataset.label : event.target.value.trim();
  if (event.target.value.trim() && label) chooseLabel(label);
});

// --- Filters

function fill(select, values) {
  const chosen = state.get(select.name);
  const all = chosen && !values.includes(chosen) ? [...values, chosen] : values;
  select.replaceChildren(select.options[0], ...all.map((value) => {
    const choice = node("option", "", value);
    choice.value = value;
    return choice;
  }));
}

/** Return a time of the address as an <input type="datetime-local"> has it. */
function localTime(text) {
  const time = new Date(text || NaN);
  if (Number.isNaN(time.getTime())) return "";
  return new Date(time.getTime() - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

function shownValue(name) {
  const value = state.get(name) ?? (name === "order" ? "newest" : "");
  return name === "until" ? localTime(value) : value;
}

function showFilters() {
  fill(filters.source, data.sources.map((each) => each.id));
  fill(filters.zone, data.sources.find((each) => each.id === state.get("source"))?.zones ?? []);
  for (const name of FIELDS) filters[name].value = shownValue(name);
  const chips = FILTERS.filter((name) => name !== "order" && state.get(name)).map(chip);
  if (chips.length) chips.push(button("", "Clear all filters", () => go(Object.fromEntries(FILTERS.map((name) => [name, null])))));
  byId("chosen").replaceChildren(...chips);
}

function chip(name) {
  const value = name === "shown" ? OUTCOMES[state.get(name)] ?? state.get(name) : state.get(name);
  const needing = { source: { zone: null }, bucket: { prefix: null, order: null } }[name] ?? {};
  const made = button("chip", `${NAMES[name]}: `, () => go({ [name]: null, ...needing }));
  made.setAttribute("aria-label", `Remove the filter ${NAMES[name]}: ${value}`);
  made.append(node("bdi", "", value), " ✕");
  return made;
}

/** Disable what is not possible with this filter. The reason is text beside it. */
function showImpossible(fields, orders) {
  for (const name of FIELDS) {
    const field = filters[name];
    byId(`why-${name}`)?.remove();
    field.removeAttribute("aria-describedby");
    field.disabled = name !== "order" && Boolean(fields[name]);
    if (!field.disabled) continue;
    const why = node("small", "why", fields[name]);
    why.id = `why-${name}`;
    field.after(why);
    field.setAttribute("aria-describedby", why.id);
  }
  for (const choice of filters.order.options) {
    choice.dataset.text ??= choice.textContent;
    const reason = orders[choice.value];
    choice.disabled = Boolean(reason);
    choice.textContent = reason ? `${choice.dataset.text} (${reason})` : choice.dataset.text;
  }
}

function submit() {
  const changes = {};
  for (const name of FIELDS) {
    const { value } = filters[name];
    if (value === shownValue(name)) continue;
    changes[name] = name === "until" && value ? new Date(value).toISOString() : value;
  }
  if (changes.order === "newest") changes.order = null;
  if (changes.prefix && !filters.bucket.value) {
    changes.bucket = cards.find((each) => each.card.uri)?.card.uri.split("/")[2];
  }
  if (changes.bucket) changes.order = "name";
  if (changes.bucket === "") Object.assign(changes, { prefix: null, order: null });
  if ("source" in changes) changes.zone = null;
  if (Object.keys(changes).length) go(changes);
}
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
filters.addEventListener("change", (event) => {
  if (event.target.tagName === "SELECT" || event.target.type === "date") submit();
});
byId("filter-panel").open = innerWidth >= PHONE_PIXELS;

function showExports() {
  byId("export-list").replaceChildren(...data.exports.map(({ name, description }) => {
    const asked = query({ format: name, threshold: state.get("threshold") });
    for (const each of state.getAll("threshold_of")) asked.append("threshold_of", each);
    const link = node("a", "", name);
    link.href = `/export?${asked}`;
    const item = node("li");
    item.append(link, `: ${description}`);
    return item;
  }));
}

// --- Pages

function say(text, ...actions) {
  byId("message").replaceChildren(...(text ? [node("p", "", text), ...actions] : []));
}

async function load() {
  loading?.abort();
  const own = new AbortController();
  loading = own;
  chosenThresholds = readThresholds();
  showFilters();
  showThreshold();
  showExports();
  say("");
  byId("usage").textContent = "";
  byId("previous").disabled = byId("next").disabled = true;
  skeletons();
  try {
    const response = await fetch(`${data.results}?${query({ cursor: state.get("cursor") })}`, {
      signal: own.signal,
    });
    const body = await response.json();
    if (response.ok) show(body);
    else fault(body.error);
  } catch (error) {
    if (error.name === "AbortError") return;
    fault("The results failed to load.");
  }
  grid.removeAttribute("aria-busy");
}

function fault(text) {
  cards = [];
  grid.replaceChildren();
  showImpossible({}, {});
  showLabels();
  byId("below").textContent = "";
  const actions = [button("", "Load again", load)];
  if (state.get("cursor")) actions.push(button("", "First page", () => go({})));
  say(text, ...actions);
}

function show(body) {
  cards = body.results.map(makeCard);
  following = body.following;
  grid.replaceChildren(...cards.map((each) => each.item));
  byId("next").disabled = !following;
  byId("previous").disabled = !state.get("cursor");
  byId("previous").textContent = state.get("cursor") && !depth() ? "First page" : "Previous page";
  const noun = body.usage.documents === 1 ? "read" : "reads";
  byId("usage").textContent = `${cards.length} results. This page cost ${body.usage.documents} ${noun}.`;
  showImpossible(body.impossible, body.impossible_orders);
  if (!cards.length) empty();
  store(sessionStorage, LISTED, JSON.stringify({ ids: cards.map((each) => each.card.id) }));
  showLabels();
  applyThresholds();
  if (byId("label-panel").open) showCounts();
  document.dispatchEvent(new CustomEvent("results-shown"));
}

function empty() {
  if (state.get("cursor")) say("There are no more results.", button("", "First page", () => go({})));
  else if ([...query()].some(([name]) => name !== "order")) say("No result matches these filters. Remove a filter.");
  else if (state.get("order")) say("No result has a confidence to sort by. Choose another order.");
  else say("There is no result yet. Upload images, and load the page again.", button("", "Load again", load));
}

byId("next").addEventListener("click", () => {
  if (!following) return;
  go({}, { cursor: following });
  scrollTo(0, 0);
});
byId("previous").addEventListener("click", () => {
  if (depth()) history.back();
  else if (state.get("cursor")) go({});
});
window.addEventListener("popstate", () => {
  state = new URLSearchParams(location.search);
  load();
});

// --- Size, boxes and keys

function stored(storage, name, fallback) {
  try {
    return storage.getItem(name) ?? fallback;
  } catch {
    return fallback; // a browser can forbid it
  }
}
function store(storage, name, value) {
  try {
    storage.setItem(name, value);
  } catch {
    // The choice is forgotten.
  }
}
const SIZE = "yolo-batch-size";
const BOXES = "yolo-batch-boxes";

function resize(value) {
  grid.style.setProperty("--card", `${Number(value) || 220}px`);
}
byId("size").value = stored(localStorage, SIZE, "220");
resize(byId("size").value);
byId("size").addEventListener("input", (event) => {
  resize(event.target.value);
  store(localStorage, SIZE, event.target.value);
});
function showBoxes(isOn) {
  byId("boxes").checked = isOn;
  grid.classList.toggle("plain", !isOn);
  store(localStorage, BOXES, isOn ? "on" : "off");
}
showBoxes(stored(localStorage, BOXES, "on") === "on");
byId("boxes").addEventListener("change", (event) => showBoxes(event.target.checked));
byId("help-button").addEventListener("click", () => byId("help").showModal());

function openSearch() {
  byId("label-panel").open = true;
  byId("label-search").focus();
}

function closePanels() {
  for (const panel of document.querySelectorAll(".view details[open]")) {
    panel.open = false;
    panel.querySelector("summary").focus();
  }
}

function move(key) {
  const at = cards.findIndex((each) => each.node === document.activeElement);
  const top = cards[0]?.node.offsetTop;
  const columns = Math.max(1, cards.filter((each) => each.node.offsetTop === top).length);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key];
  const next = at < 0 ? 0 : at + step;
  cards[Math.min(Math.max(next, 0), cards.length - 1)]?.node.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") return closePanels();
  if (event.target.closest("select, textarea, dialog, input:not([type=checkbox], [type=range])")) return;
  const isSlider = event.target.matches("input[type=range]"); // the arrows move it
  const keys = {
    "[": () => byId("previous").click(),
    "]": () => byId("next").click(),
    b: () => showBoxes(!byId("boxes").checked),
    "/": openSearch,
    "?": () => byId("help").showModal(),
  };
  if (event.key.startsWith("Arrow") && !isSlider) move(event.key);
  else if (Object.hasOwn(keys, event.key)) keys[event.key]();
  else return;
  event.preventDefault();
});

load();
