// Draws the detections of a result over its image, as SVG. Used by every page that shows an image.

const SVG = "http://www.w3.org/2000/svg";
const MIN_KEYPOINT = 0.5; // a keypoint with a lower confidence is probably hidden

/** Return a color that depends on the label alone, so that filters never change it. */
export function color(label) {
  let hash = 2166136261; // FNV-1a, 32 bits
  for (let i = 0; i < label.length; i += 1) {
    hash = Math.imul(hash ^ label.charCodeAt(i), 16777619);
  }
  return `hsl(${(hash >>> 0) % 360} 85% 60%)`;
}

function element(name, attributes = {}) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function pairs(points) {
  const found = [];
  for (let i = 0; i + 1 < points.length; i += 2) found.push(`${points[i]},${points[i + 1]}`);
  return found;
}

function shape(item) {
  if (item.corners) return element("polygon", { points: pairs(item.corners).join(" ") });
  const [x1, y1, x2, y2] = item.box;
  return element("rect", {
    x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1),
  });
}

function group(item, index, isFaint, size, lines) {
  const node = element("g", { class: isFaint ? "detection faint" : "detection" });
  node.dataset.label = item.label;
  node.dataset.confidence = item.confidence;
  node.dataset.index = index;
  node.style.setProperty("--label", color(item.label));
  if (item.polygons) {
    const path = item.polygons.map((ring) => `M${pairs(ring).join("L")}Z`).join("");
    node.append(element("path", { class: "mask", d: path, "fill-rule": "evenodd" }));
  }
  const outline = shape(item);
  outline.setAttribute("class", "box");
  node.append(outline);
  for (const point of item.keypoints ?? []) {
    if (point.confidence >= MIN_KEYPOINT) {
      node.append(element("circle", { class: "keypoint", cx: point.x, cy: point.y, r: size / 160 }));
    }
  }
  const height = size / lines;
  const top = Math.max(Math.min(item.box[1], item.box[3]), height); // inside of the image
  const text = element("text", { class: "name", x: Math.max(item.box[0], 0), y: top, "font-size": height });
  text.textContent = `${item.label} ${item.confidence.toFixed(2)}`;
  node.append(text);
  return node;
}

/**
 * Fill an <svg> with one <g class="detection"> for each detection, and each faint detection.
 * Return what `apply` needs. `card` is an object of service/gallery/card.py. `lines` is how many lines
 * of text the longer side of the image has room for.
 */
export function draw(svg, card, { faint = true, lines = 28 } = {}) {
  const width = card.width || 1;
  const height = card.height || 1;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  // Without the image's size, nobody knows where the boxes are.
  svg.style.visibility = card.width && card.height ? "" : "hidden";
  const size = Math.max(width, height);
  const kept = card.detections.map((item) => ({ item, isFaint: false }));
  const all = faint ? kept.concat(card.faint.map((item) => ({ item, isFaint: true }))) : kept;
  const drawn = all.map(({ item, isFaint }, index) => ({
    label: item.label,
    confidence: item.confidence,
    isFaint,
    isShown: true,
    node: group(item, index, isFaint, size, lines),
  }));
  svg.replaceChildren(...drawn.map((each) => each.node));
  return drawn;
}

/** The lowest confidence that is shown: for all labels, and for single labels. */
export class Thresholds {
  constructor(value = null, ofLabel = new Map()) {
    this.value = value; // null: what the service kept
    this.ofLabel = ofLabel;
  }

  /** Return whether a detection is shown. */
  shows(each) {
    const own = this.ofLabel.get(each.label) ?? this.value;
    return own === null ? !each.isFaint : each.confidence >= own;
  }
}

/** Show and hide what `draw` has drawn. Change only what crosses a threshold. Return the counts. */
export function apply(drawn, thresholds) {
  let shown = 0;
  for (const each of drawn) {
    const isShown = thresholds.shows(each);
    if (isShown !== each.isShown) {
      each.node.classList.toggle("hidden", !isShown);
      each.isShown = isShown;
    }
    shown += isShown;
  }
  return { shown, below: drawn.length - shown };
}
