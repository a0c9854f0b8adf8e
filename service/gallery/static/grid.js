// The grid of results. The address of the page is its whole state.

import { Thresholds, apply, color, draw } from "./overlay.js";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const grid = byId("grid");
const filters = byId("filters");
const FILTERS = ["order", "label", "shown", "source", "zone", "day", "until", "bucket", "prefix"];
const OUTCOMES = { found: "found", nothing_found: "nothing found", failed: "failed", parked: "parked" };
const MARKS = { found: "●", nothing_found: "○", failed: "✕", parked: "‖" };
const LIST = "yolo-batch-list"; // the page's results, for the arrow keys of the image page

let state = new URLSearchParams(location.search);
let cards = []; // of this page: {card, drawn, node, below}
let following = null;
let loading = null; // AbortController of the request under way
let frame = 0;

function thresholds() {
  const found = new Thresholds();
  const text = state.get("threshold");
  if (text !== null && text !== "" && Number.isFinite(Number(text))) found.value = Number(text);
  for (const each of state.getAll("threshold_of")) {
    const at = each.lastIndexOf(":");
    const value = Number(each.slice(at + 1));
    if (at > 0 && Number.isFinite(value)) found.ofLabel.set(each.slice(0, at), value);
  }
  return found;
}

function query(extra = {}) {
  const found = new URLSearchParams();
  for (const name of FILTERS) if (state.get(name)) found.set(name, state.get(name));
  for (const [name, value] of Object.entries(extra)) if (value) found.set(name, value);
  return found;
}

function node(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function go(changes, { keepCursor = false } = {}) {
  const next = new URLSearchParams(state);
  if (!keepCursor) next.delete("cursor");
  for (const [name, value] of Object.entries(changes)) {
    if (value) next.set(name, value);
    else next.delete(name);
  }
  history.pushState(null, "", `?${next}`);
  state = next;
  load();
}

function remember(changes) {
  for (const [name, value] of Object.entries(changes)) {
    state.delete(name);
    for (const each of [].concat(value ?? [])) if (each !== "") state.append(name, each);
  }
  history.replaceState(null, "", `?${state}`);
  for (const { node: card, card: { id } } of cards) card.href = address(id);
  showExports();
}

function address(id) {
  const kept = new URLSearchParams(state);
  kept.delete("cursor");
  const text = kept.toString();
  return data.image.replace("ID", id) + (text ? `?${text}` : "");
}

// --- Cards

function framed(card) {
  const frameNode = node("span", "frame");
  if (!card.thumbnail) {
    frameNode.append(node("span", "hole", card.error ? (card.error.code ?? "failed") : "no image"));
    return { frameNode, drawn: [] };
  }
  if (card.width && card.height) frameNode.style.aspectRatio = `${card.width} / ${card.height}`;
  frameNode.classList.add("loading");
  const image = node("img");
  image.alt = card.alt;
  image.loading = "lazy";
  image.decoding = "async";
  image.addEventListener("load", () => frameNode.classList.remove("loading"));
  image.addEventListener("error", () => failed(frameNode, image, card));
  image.src = card.thumbnail;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "overlay");
  svg.setAttribute("aria-hidden", "true");
  const drawn = draw(svg, card);
  frameNode.append(image, svg);
  return { frameNode, drawn };
}

async function failed(frameNode, image, card) {
  frameNode.classList.remove("loading");
  const hole = node("span", "hole", "The image failed to load.");
  const retry = node("button", "retry", "Load again");
  retry.type = "button";
  retry.addEventListener("click", (event) => {
    event.preventDefault();
    hole.remove();
    image.hidden = false;
    image.src = `${card.thumbnail}?again=${Date.now()}`;
  });
  hole.append(retry);
  image.hidden = true;
  frameNode.append(hole);
  const response = await fetch(card.thumbnail, { headers: { Accept: "application/json" } }).catch(() => null);
  if (response && response.status === 404) {
    const reason = new DOMParser().parseFromString(await response.text(), "text/html");
    hole.firstChild.textContent = reason.querySelector("main p")?.textContent ?? "There is no image.";
  }
}

function makeCard(card) {
  const link = node("a", "card");
  link.href = address(card.id);
  const { frameNode, drawn } = framed(card);
  const outcome = card.shown ?? "unreadable";
  const caption = node("span", "caption");
  const name = node("bdi", "name", card.name ?? card.id);
  name.title = card.name ?? card.id;
  const line = node("span", `outcome ${outcome}`);
  line.append(node("span", "mark", MARKS[outcome] ?? "?"), " ", OUTCOMES[outcome] ?? "unreadable");
  if (card.error?.code) line.append(`: ${card.error.code}`);
  const below = node("span", "soft below");
  caption.append(name, line);
  for (const each of card.classes.slice(0, 2)) {
    caption.append(node("span", "soft", `${each.label} ${each.confidence.toFixed(2)}`));
  }
  caption.append(below);
  link.append(frameNode, caption);
  const item = node("div", "item");
  item.setAttribute("role", "listitem");
  item.append(link);
  return { card, drawn, node: link, item, below };
}

function skeletons() {
  const count = Math.min(data.page_size, 24);
  grid.setAttribute("aria-busy", "true");
  grid.replaceChildren(...Array.from({ length: count }, () => {
    const item = node("div", "item skeleton");
    item.setAttribute("aria-hidden", "true");
    return item;
  }));
}

// --- Thresholds

export function applyThresholds(chosen = thresholds()) {
  let below = 0;
  let cut = false;
  for (const each of cards) {
    const counts = apply(each.drawn, chosen);
    below += counts.below;
    const text = counts.below ? `${counts.below} below` : "";
    if (each.below.textContent !== text) each.below.textContent = text;
    const lowest = Math.min(chosen.value ?? 1, ...chosen.ofLabel.values());
    cut ||= each.card.faint_cut !== null && each.card.faint_cut > lowest;
  }
  const noun = below === 1 ? "detection" : "detections";
  const more = cut ? " Less confident detections were not recorded in some images." : "";
  const text = `${below} ${noun} below the threshold.${more}`;
  if (byId("below").textContent !== text) byId("below").textContent = text;
}

function showThreshold() {
  const chosen = thresholds();
  byId("threshold").value = chosen.value ?? 0;
  byId("threshold-text").textContent = chosen.value === null ? "as recorded" : chosen.value.toFixed(2);
}

byId("threshold").addEventListener("input", (event) => {
  state.set("threshold", event.target.value);
  byId("threshold-text").textContent = Number(event.target.value).toFixed(2);
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => applyThresholds());
});
byId("threshold").addEventListener("change", (event) => remember({ threshold: event.target.value }));
byId("threshold-reset").addEventListener("click", () => {
  remember({ threshold: null, threshold_of: null });
  showThreshold();
  showLabels();
  applyThresholds();
});

// --- Labels

function labelsInView() {
  const found = new Set();
  for (const { card } of cards) {
    for (const each of [...card.detections, ...card.faint, ...card.classes]) found.add(each.label);
  }
  return [...found].sort();
}

function showLabels() {
  const labels = labelsInView().slice(0, 40);
  const own = thresholds().ofLabel;
  byId("labels").replaceChildren(...labels.map((label) => {
    const choice = node("option");
    choice.value = label;
    return choice;
  }));
  byId("label-list").replaceChildren(...labels.map((label) => {
    const row = node("div", "label-row");
    const swatch = node("span", "swatch");
    swatch.style.background = color(label);
    const name = node("button", "link");
    name.type = "button";
    name.append(node("bdi", "", label));
    name.addEventListener("click", () => go({ label }));
    const count = node("span", "soft count");
    count.dataset.label = label;
    const slider = node("input");
    Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.01, value: own.get(label) ?? 0 });
    slider.setAttribute("aria-label", `Threshold of ${label}`);
    slider.addEventListener("input", () => {
      setOwn(label, slider.value);
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(() => applyThresholds());
    });
    slider.addEventListener("change", () => remember({}));
    row.append(swatch, name, count, slider);
    return row;
  }));
}

function setOwn(label, value) {
  const kept = state.getAll("threshold_of").filter((each) => !each.startsWith(`${label}:`));
  state.delete("threshold_of");
  for (const each of [...kept, `${label}:${value}`]) state.append("threshold_of", each);
}

async function showCounts() {
  const labels = labelsInView().slice(0, 40);
  if (!labels.length) return;
  const asked = query();
  asked.delete("label");
  for (const label of labels) asked.append("of", label);
  const response = await fetch(`${data.counts}?${asked}`);
  if (!response.ok) return;
  const { counts, reads } = await response.json();
  for (const each of document.querySelectorAll(".count")) {
    const count = counts[each.dataset.label];
    each.textContent = count === undefined ? "" : count.toLocaleString();
  }
  byId("count-cost").textContent = `The counts cost ${reads} reads. They are kept for a minute.`;
}
document.querySelector(".labels").addEventListener("toggle", (event) => {
  if (event.target.open) showCounts();
});

// --- Filters

function fill(select, values) {
  const first = select.options[0];
  select.replaceChildren(first, ...values.map((value) => {
    const choice = node("option", "", value);
    choice.value = value;
    return choice;
  }));
}

function showFilters() {
  fill(filters.source, data.sources.map((each) => each.id));
  const source = data.sources.find((each) => each.id === state.get("source"));
  fill(filters.zone, source ? source.zones : []);
  filters.zone.disabled = !source?.zones.length;
  for (const name of FILTERS) {
    const value = state.get(name) ?? (name === "order" ? "newest" : "");
    filters[name].value = name === "until" ? value.slice(0, 16) : value;
  }
  const chosen = byId("chosen");
  chosen.replaceChildren();
  for (const name of FILTERS) {
    if (!state.get(name) || name === "order") continue;
    const clear = node("button", "chip");
    clear.type = "button";
    clear.append(`${name}: `, node("bdi", "", state.get(name)), " ✕");
    clear.setAttribute("aria-label", `Remove the filter ${name}`);
    clear.addEventListener("click", () => go({ [name]: null, ...(name === "source" ? { zone: null } : {}) }));
    chosen.append(clear);
  }
}

function submit() {
  const changes = {};
  for (const name of FILTERS) {
    const value = filters[name].value;
    changes[name] = name === "order" && value === "newest" ? null : value;
  }
  if (changes.until) changes.until = new Date(changes.until).toISOString();
  if (changes.prefix && !changes.bucket) changes.bucket = cards[0]?.card.uri?.split("/")[2] ?? "";
  if (changes.bucket) changes.order = "name";
  else if (changes.order === "name") changes.order = null;
  if (!changes.source) changes.zone = null;
  go(changes);
}
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
filters.addEventListener("change", (event) => {
  if (event.target.tagName === "SELECT" || event.target.type === "date") submit();
});

function showExports() {
  const list = byId("export-list");
  const formats = data.exports ?? [];
  list.replaceChildren(...formats.map(({ name, text }) => {
    const link = node("a", "", `${name}: ${text}`);
    const asked = query({ format: name, threshold: state.get("threshold") });
    for (const each of state.getAll("threshold_of")) asked.append("threshold_of", each);
    link.href = `/export?${asked}`;
    return link;
  }));
}

// --- Pages

async function load() {
  loading?.abort();
  loading = new AbortController();
  showFilters();
  showThreshold();
  showExports();
  byId("message").textContent = "";
  byId("previous").disabled = byId("next").disabled = true;
  skeletons();
  try {
    const response = await fetch(`${data.results}?${query({ cursor: state.get("cursor") })}`, {
      signal: loading.signal,
    });
    const body = await response.json();
    if (!response.ok) throw new Error(body.error);
    show(body);
  } catch (error) {
    if (error.name === "AbortError") return;
    grid.replaceChildren();
    byId("message").textContent = error.message || "The results failed to load. Load the page again.";
  } finally {
    grid.removeAttribute("aria-busy");
  }
}

function show(body) {
  cards = body.results.map(makeCard);
  following = body.following;
  grid.replaceChildren(...cards.map((each) => each.item));
  byId("next").disabled = !following;
  byId("previous").disabled = !state.get("cursor");
  byId("usage").textContent = `${cards.length} results, ${body.usage.documents} reads`;
  if (!cards.length) {
    byId("message").textContent = [...query()].length
      ? "No result matches these filters. Remove a filter."
      : "There is no result yet. Upload images, and load the page again.";
  }
  sessionStorage.setItem(LIST, JSON.stringify({
    ids: cards.map((each) => each.card.id), query: query().toString(), following,
  }));
  showLabels();
  applyThresholds();
  if (document.querySelector(".labels").open) showCounts();
  document.dispatchEvent(new CustomEvent("results-shown"));
}

byId("next").addEventListener("click", () => following && go({ cursor: following }, { keepCursor: true }));
byId("previous").addEventListener("click", () => state.get("cursor") && history.back());
window.addEventListener("popstate", () => {
  state = new URLSearchParams(location.search);
  load();
});

// --- Size, boxes and keys

function stored(name, fallback) {
  return localStorage.getItem(`yolo-batch-${name}`) ?? fallback;
}
function store(name, value) {
  localStorage.setItem(`yolo-batch-${name}`, value);
}
function resize(value) {
  grid.style.setProperty("--card", `${value}px`);
}
byId("size").value = stored("size", "220");
resize(byId("size").value);
byId("size").addEventListener("input", (event) => {
  resize(event.target.value);
  store("size", event.target.value);
});
function showBoxes(isOn) {
  byId("boxes").checked = isOn;
  grid.classList.toggle("plain", !isOn);
  store("boxes", isOn ? "on" : "off");
}
showBoxes(stored("boxes", "on") === "on");
byId("boxes").addEventListener("change", (event) => showBoxes(event.target.checked));
byId("help-button").addEventListener("click", () => byId("help").showModal());

function move(key) {
  const at = cards.findIndex((each) => each.node === document.activeElement);
  const top = cards[0]?.node.offsetTop;
  const columns = Math.max(1, cards.filter((each) => each.node.offsetTop === top).length);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key];
  const next = at < 0 ? 0 : Math.min(Math.max(at + step, 0), cards.length - 1);
  cards[next]?.node.focus();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, dialog")) return;
  const keys = {
    "[": () => byId("previous").click(),
    "]": () => byId("next").click(),
    b: () => showBoxes(!byId("boxes").checked),
    "/": () => filters.label.focus(),
    "?": () => byId("help").showModal(),
  };
  if (event.key.startsWith("Arrow")) move(event.key);
  else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
});

load();
