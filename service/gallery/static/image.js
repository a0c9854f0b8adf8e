// The page of one image: zoom, pan, threshold, and rows that light their boxes.

import { Thresholds, apply, color, draw } from "./overlay.js";

const MAX_ZOOM = 32;
const STEP = 1.25; // of one zoom
const PAN = 60; // screen pixels of one key
const HIT = 6; // screen pixels around a box that still hit it
const BOXES = "yolo-batch-boxes"; // key in localStorage, of all pages
const LISTED = "yolo-batch-list"; // key in sessionStorage: what the grid has listed

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

/** Return a stored text, or null. A browser can forbid storage. */
function stored(storage, key) {
  try {
    return window[storage].getItem(key);
  } catch {
    return null;
  }
}

function store(storage, key, value) {
  try {
    window[storage].setItem(key, value);
  } catch {
    // The setting is forgotten when the page is left.
  }
}

/** Return whether a key belongs to a control, or is a shortcut of the browser. */
function isForControl(event) {
  return event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea");
}

/** The rows of the table and the drawn detections, which light each other. */
class Table {
  constructor(drawn) {
    this.drawn = drawn;
    this.rows = [...document.querySelectorAll("#rows tbody tr")];
    this.lit = null;
    for (const row of this.rows) {
      const index = Number(row.dataset.index);
      row.querySelector(".swatch").style.background = color(drawn[index]?.label ?? "");
      row.addEventListener("pointerenter", () => this.light(index));
      row.addEventListener("pointerleave", () => this.light(null));
      row.addEventListener("focus", () => this.light(index));
      row.addEventListener("blur", () => this.light(null));
    }
  }

  light(index) {
    if (index === this.lit) return;
    if (this.lit !== null) this.#toggle(this.lit, false);
    this.lit = index;
    if (index !== null) this.#toggle(index, true);
  }

  #toggle(index, isLit) {
    this.drawn[index]?.node.classList.toggle("lit", isLit);
    this.rows[index]?.classList.toggle("lit", isLit);
  }

  /** Show what the thresholds leave, and say how much they hide. */
  apply(thresholds) {
    const { shown, below } = apply(this.drawn, thresholds);
    this.drawn.forEach((each, index) => {
      if (this.rows[index]) this.rows[index].hidden = !each.isShown;
    });
    const hidden = thresholds.value === null ? "not kept by the settings" : "below the threshold";
    find("count").textContent = `${shown} shown, ${below} ${hidden}`;
  }
}

/** The zoomed and moved image. */
class View {
  constructor(onChange) {
    this.stage = find("stage");
    this.sheet = find("sheet");
    this.onChange = onChange;
    this.reset();
  }

  reset() {
    Object.assign(this, { zoom: 1, x: 0, y: 0 });
    this.#show();
  }

  /** Zoom by a factor. The point (in screen pixels from the stage's corner) stays where it is. */
  zoomBy(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const zoom = Math.min(MAX_ZOOM, Math.max(1, this.zoom * factor));
    const change = zoom / this.zoom;
    this.x = x - (x - this.x) * change;
    this.y = y - (y - this.y) * change;
    this.zoom = zoom;
    this.#show();
  }

  moveBy(x, y) {
    this.x += x;
    this.y += y;
    this.#show();
  }

  #show() {
    const limit = (offset, size) => Math.min(0, Math.max(size * (1 - this.zoom), offset));
    this.x = limit(this.x, this.stage.clientWidth);
    this.y = limit(this.y, this.stage.clientHeight);
    this.sheet.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.zoom})`;
    this.stage.classList.toggle("zoomed", this.zoom > 1);
    find("zoom").textContent = `${Math.round(this.zoom * 100)} %`;
    this.onChange(this.zoom);
  }
}

/** Return the index of the smallest shown detection at a point of the screen, or null. */
function hit(drawn, items, svg, clientX, clientY) {
  const frame = svg.getBoundingClientRect();
  const { width, height } = svg.viewBox.baseVal;
  const x = ((clientX - frame.left) / frame.width) * width;
  const y = ((clientY - frame.top) / frame.height) * height;
  const margin = (HIT / frame.width) * width;
  let best = null;
  let bestArea = Infinity;
  drawn.forEach((each, index) => {
    const [x1, y1, x2, y2] = items[index].box;
    const isInside = x >= x1 - margin && x <= x2 + margin && y >= y1 - margin && y <= y2 + margin;
    const area = (x2 - x1) * (y2 - y1);
    if (each.isShown && isInside && area < bestArea) [best, bestArea] = [index, area];
  });
  return best;
}

function setUpView(table, items) {
  const image = find("image");
  const svg = find("overlay");
  // Lines of text and keypoints keep their size on the screen.
  const scale = (zoom) => {
    const unit = svg.viewBox.baseVal.width / (svg.clientWidth || 1) / zoom;
    svg.style.setProperty("--unit", `${unit}px`);
  };
  const view = new View(scale);
  new ResizeObserver(() => view.moveBy(0, 0)).observe(view.stage);

  find("zoom-in").addEventListener("click", () => view.zoomBy(STEP));
  find("zoom-out").addEventListener("click", () => view.zoomBy(1 / STEP));
  find("zoom-reset").addEventListener("click", () => view.reset());
  view.stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const corner = view.stage.getBoundingClientRect();
    const factor = event.deltaY < 0 ? STEP : 1 / STEP;
    view.zoomBy(factor, event.clientX - corner.left, event.clientY - corner.top);
  }, { passive: false });

  let isDragging = false;
  view.stage.addEventListener("pointerdown", (event) => {
    isDragging = view.zoom > 1 && event.button === 0;
    if (isDragging) view.stage.setPointerCapture(event.pointerId);
  });
  view.stage.addEventListener("pointermove", (event) => {
    if (isDragging) view.moveBy(event.movementX, event.movementY);
    else table.light(hit(table.drawn, items, svg, event.clientX, event.clientY));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    view.stage.addEventListener(name, () => { isDragging = false; });
  }
  view.stage.addEventListener("pointerleave", () => table.light(null));

  const boxes = find("boxes");
  const showBoxes = () => svg.classList.toggle("off", !boxes.checked);
  boxes.checked = stored("localStorage", BOXES) !== "off";
  boxes.addEventListener("change", () => {
    store("localStorage", BOXES, boxes.checked ? "on" : "off");
    showBoxes();
  });
  showBoxes();

  const shape = () => {
    const ratio = (data.card.width || image.naturalWidth) / (data.card.height || image.naturalHeight);
    if (ratio > 0 && Number.isFinite(ratio)) view.stage.style.setProperty("--ratio", ratio);
  };
  shape();
  image.addEventListener("load", shape);

  const broken = find("broken");
  const fail = () => { broken.hidden = false; view.stage.hidden = true; };
  image.addEventListener("error", fail);
  image.addEventListener("load", () => { broken.hidden = true; view.stage.hidden = false; });
  if (image.complete && image.naturalWidth === 0) fail();
  find("retry").addEventListener("click", () => { image.src = data.card.large; });
  return view;
}

/** Return the thresholds of the address: one for all labels, and those of single labels. */
function givenThresholds() {
  const given = new URL(location.href).searchParams;
  const isShare = (text) => text !== null && text !== "" && Number(text) >= 0 && Number(text) <= 1;
  const found = new Thresholds(isShare(given.get("threshold")) ? Number(given.get("threshold")) : null);
  for (const each of given.getAll("threshold_of")) {
    const at = each.lastIndexOf(":");
    if (at > 0 && isShare(each.slice(at + 1))) found.ofLabel.set(each.slice(0, at), Number(each.slice(at + 1)));
  }
  return found;
}

/** Return an address with a threshold. Null: without any threshold. */
function withThreshold(text, value) {
  const address = new URL(text);
  if (value !== null) address.searchParams.set("threshold", value.toFixed(2));
  else for (const name of ["threshold", "threshold_of"]) address.searchParams.delete(name);
  return address;
}

function setUpThreshold(table) {
  const slider = find("threshold");
  if (!slider) return;
  const thresholds = givenThresholds();
  const show = () => {
    const { value, ofLabel } = thresholds;
    slider.value = value ?? slider.defaultValue;
    const own = [...ofLabel].map(([label, each]) => `, ${label} ${each.toFixed(2)}`).join("");
    find("threshold-value").textContent = (value === null ? "as kept" : value.toFixed(2)) + own;
    table.apply(thresholds);
  };
  const choose = (value) => {
    thresholds.value = value;
    if (value === null) thresholds.ofLabel.clear();
    show();
    history.replaceState(null, "", withThreshold(location.href, value));
    for (const link of document.querySelectorAll("#previous[href], #next[href], #back")) {
      link.href = withThreshold(link.href, value);
    }
  };
  slider.addEventListener("input", () => choose(slider.valueAsNumber));
  find("threshold-reset").addEventListener("click", () => choose(null));
  show();
}

/** Link the neighbours of the grid's page, if the image was opened from there. */
function setUpNeighbours() {
  let listed;
  try {
    listed = JSON.parse(stored("sessionStorage", LISTED));
  } catch {
    return;
  }
  const ids = Array.isArray(listed?.ids) ? listed.ids : [];
  const place = ids.indexOf(data.card.id);
  if (place < 0) return;
  const link = (id, neighbour, text) => {
    const node = find(id);
    node.hidden = typeof neighbour !== "string";
    if (node.hidden) return node.removeAttribute("href");
    node.href = `/image/${encodeURIComponent(neighbour)}${location.search}`;
    node.textContent = text;
    return node.removeAttribute("title");
  };
  link("previous", ids[place - 1], "← Previous");
  link("next", ids[place + 1], "Next →");
}

function onKey(event, view) {
  if (isForControl(event)) return;
  const pans = { ArrowLeft: [PAN, 0], ArrowRight: [-PAN, 0], ArrowUp: [0, PAN], ArrowDown: [0, -PAN] };
  if (event.shiftKey && pans[event.key] && view?.zoom > 1) view.moveBy(...pans[event.key]);
  else if (event.key === "+" || event.key === "=") view?.zoomBy(STEP);
  else if (event.key === "-") view?.zoomBy(1 / STEP);
  else if (event.key === "0") view?.reset();
  else if (event.key === "b") find("boxes")?.click();
  else if (!event.shiftKey && event.key === "ArrowLeft") find("previous").click();
  else if (!event.shiftKey && event.key === "ArrowRight") find("next").click();
  else return;
  event.preventDefault();
}

function setUpCopy() {
  const button = find("copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(find("raw").textContent);
      find("status").textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(find("raw"));
      find("status").textContent = "The browser did not allow it. The text is selected: copy it with Ctrl+C";
    }
  });
}

const items = data.card.detections.concat(data.card.faint);
const svg = find("overlay");
const drawn = draw(svg ?? document.createElementNS("http://www.w3.org/2000/svg", "svg"), data.card);
const table = new Table(drawn);
const view = svg ? setUpView(table, items) : null;
setUpThreshold(table);
setUpNeighbours();
setUpCopy();
document.addEventListener("keydown", (event) => onKey(event, view));
