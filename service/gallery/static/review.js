// The review: one image at a time, and keys that give verdicts.

import { Thresholds, color, draw } from "./overlay.js";

const MAX_SKIPPED_PAGES = 10; // pages of results with verdicts, before a person is asked
const data = JSON.parse(document.getElementById("data").textContent);
const thresholds = new Thresholds(data.threshold);
const byId = (id) => document.getElementById(id);

const cards = []; // every result that was loaded, in order
const given = []; // [card, revision] of each verdict of this visit, for undo
let position = -1;
let following = new URLSearchParams(location.search).get("cursor"); // null: the first page
let hasMore = true;
let picked = null; // the position of a detection in `items`
let isShown = false; // whether the image has loaded
let isBusy = false;
let loading = null; // the promise of the page that is being loaded
let reads = 0;
let drawn = [];

function items(card) {
  const detections = [...card.detections.map((item) => ({ item, isFaint: false })),
    ...card.faint.map((item) => ({ item, isFaint: true }))];
  return detections.length ? detections : card.classes.slice(0, 1).map((item) => ({ item, isFaint: false }));
}

/** Return the positions of the detections above the threshold. */
function shownItems(card) {
  return items(card).flatMap(({ item, isFaint }, index) => (
    thresholds.shows({ label: item.label, confidence: item.confidence, isFaint }) ? [index] : []));
}

/** Return what the verdict of the current run says, or an empty one. */
function current(card) {
  const { verdict } = card;
  const isOfThisRun = verdict && verdict.result_created_at === card.created_at;
  return {
    correct: new Set(isOfThisRun ? verdict.correct : []),
    wrong: new Set(isOfThisRun ? verdict.wrong : []),
    missed: Boolean(isOfThisRun && verdict.missed),
    missed_label: isOfThisRun ? verdict.missed_label : null,
  };
}

function say(text) {
  byId("message").textContent = text;
}

async function ask(url, options = {}) {
  const token = document.querySelector('meta[name="csrf-token"]').content;
  const headers = { "X-CSRF-Token": token, "Content-Type": "application/json" };
  const response = await fetch(url, { ...options, headers });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(body.error ?? `The gallery responded with ${response.status}.`);
    throw Object.assign(error, { status: response.status });
  }
  return body;
}

/** Load one more page of results. Return whether there was one. One page is loaded at a time. */
function load() {
  loading ??= loadPage().finally(() => { loading = null; });
  return loading;
}

async function loadPage() {
  if (!hasMore) return false;
  const asked = new URLSearchParams(data.filter);
  if (following) asked.set("cursor", following);
  const cursor = following;
  const page = await ask(`${data.results}?${asked}`);
  for (const card of page.results) cards.push({ ...card, cursor });
  following = page.following;
  hasMore = following !== null;
  reads += page.usage.documents;
  byId("usage").textContent = `This page has read ${reads} documents: results, and the verdict of each.`;
  return true;
}

function hasVerdict(card) {
  return card.verdict && card.verdict.result_created_at === card.created_at;
}

/** Show the next image without a verdict behind a position. */
async function showUnreviewed(from) {
  let index = from;
  for (let pages = 0; ;) {
    while (index < cards.length && hasVerdict(cards[index])) index += 1;
    if (index < cards.length) {
      show(index);
      return;
    }
    if (pages === MAX_SKIPPED_PAGES) break;
    if (!await load()) break;
    pages += 1;
  }
  finish(hasMore);
}

function finish(isMore) {
  byId("work").hidden = position < 0;
  if (isMore) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Look for more images";
    button.addEventListener("click", () => guard(() => showUnreviewed(cards.length)));
    byId("message").replaceChildren("The images up to here all have verdicts. ", button);
    return;
  }
  say(cards.length ? "Every image of this filter has a verdict, or was skipped." : "No image matches this filter.");
}

function remember(card) {
  const url = new URL(location.href);
  if (card.cursor) url.searchParams.set("cursor", card.cursor);
  else url.searchParams.delete("cursor");
  url.searchParams.set("at", card.id);
  history.replaceState(null, "", url);
}

function show(index) {
  position = index;
  picked = null;
  isShown = false;
  say("");
  const card = cards[index];
  remember(card);
  byId("work").hidden = false;
  byId("name").textContent = card.name ?? "An image without a name";
  byId("facts").textContent = [card.source && `source ${card.source}`, card.created_at].filter(Boolean).join(" · ");
  byId("details").href = data.image.replace("ID", encodeURIComponent(card.id));
  byId("missed-label").value = "";
  const image = byId("image");
  image.alt = card.alt;
  image.removeAttribute("src");
  const hasImage = Boolean(card.large);
  byId("figure").hidden = !hasImage;
  byId("no-image").hidden = hasImage;
  byId("no-image").textContent = "This result has no image to show.";
  drawn = draw(byId("overlay"), card);
  byId("overlay").setAttribute("class", "overlay");
  if (hasImage) image.src = card.large;
  render();
  preload(index + 1);
  byId("name").focus({ preventScroll: true });
}

byId("image").addEventListener("load", () => {
  isShown = true;
  byId("work").dataset.shown = cards[position].id;
});
byId("image").addEventListener("error", () => {
  if (!byId("image").hasAttribute("src")) return;
  byId("figure").hidden = true;
  byId("no-image").hidden = false;
  byId("no-image").textContent = "The image failed to load, so it cannot be judged. Go to the next image.";
});

function preload(index) {
  if (cards[index]?.large) new Image().src = cards[index].large;
  if (index >= cards.length - 3 && hasMore && !preload.isLoading) {
    preload.isLoading = true;
    guard(load).finally(() => { preload.isLoading = false; });
  }
}

/** Show the verdict, and the list of detections. */
function render() {
  const card = cards[position];
  const verdict = current(card);
  const shown = shownItems(card);
  drawn.forEach((each, index) => {
    each.node.classList.toggle("hidden", !shown.includes(index));
    each.node.classList.toggle("picked", index === picked);
  });
  byId("verdict").textContent = describe(card);
  byId("missed").setAttribute("aria-pressed", String(verdict.missed));
  byId("undo").disabled = given.length === 0;
  const all = items(card);
  byId("list-title").textContent = shown.length ? "Detections" : "No detections above the threshold";
  const focused = document.activeElement?.dataset?.index;
  byId("detections").replaceChildren(...shown.map((index, number) => {
    const { item, isFaint } = all[index];
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.index = index;
    button.setAttribute("aria-pressed", String(index === picked));
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = color(item.label);
    const said = verdict.correct.has(index) ? ": correct" : verdict.wrong.has(index) ? ": wrong" : "";
    const key = number < 9 ? `${number + 1}. ` : "";
    const text = `${key}${item.label} ${item.confidence.toFixed(2)}${isFaint ? " (faint)" : ""}${said}`;
    button.append(swatch, text);
    button.addEventListener("focus", () => pick(index));
    button.addEventListener("click", () => pick(index));
    const entry = document.createElement("li");
    entry.append(button);
    return entry;
  }));
  if (focused !== undefined) byId("detections").querySelector(`[data-index="${focused}"]`)?.focus();
}

function describe(card) {
  const { verdict } = card;
  if (!verdict) return "No verdict yet.";
  const missed = verdict.missed ? `, missed${verdict.missed_label ? `: ${verdict.missed_label}` : ""}` : "";
  const by = `by ${verdict.reviewer}`;
  if (hasVerdict(card)) return `Verdict ${by}: ${verdict.image}${missed}.`;
  return `Verdict ${by} of an earlier run with ${verdict.model ?? "another model"}: ${verdict.image}${missed}. `
    + "It does not count for this run.";
}

function pick(index) {
  if (picked === index) return;
  picked = index;
  drawn.forEach((each, number) => each.node.classList.toggle("picked", number === picked));
  for (const button of byId("detections").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === picked));
  }
}

/** Run one action at a time. Show its error. */
async function guard(action) {
  try {
    await action();
  } catch (error) {
    say(error.message);
  }
}

async function act(action) {
  if (isBusy) return;
  isBusy = true;
  try {
    await guard(action);
  } finally {
    isBusy = false;
  }
}

function verdictUrl(card) {
  return data.verdict.replace("ID", encodeURIComponent(card.id));
}

async function store(verdict) {
  const card = cards[position];
  if (!isShown) {
    say("Wait until the image is shown. If it fails to load, it cannot be judged.");
    return;
  }
  const body = {
    generation: card.generation,
    created_at: card.created_at,
    correct: [...verdict.correct],
    wrong: [...verdict.wrong],
    missed: verdict.missed,
    missed_label: verdict.missed_label,
    order: data.order,
  };
  const stored = await ask(verdictUrl(card), { method: "PUT", body: JSON.stringify(body) });
  card.verdict = stored.verdict;
  given.push([card, stored.verdict.revision]);
  const judged = current(card);
  const open = shownItems(card).filter((index) => !judged.correct.has(index) && !judged.wrong.has(index));
  if (open.length) {
    picked = null;
    byId("name").focus({ preventScroll: true }); // else the focused detection is chosen again
    render();
  } else {
    await showUnreviewed(position + 1);
    byId("undo").disabled = false;
  }
  byId("status").textContent = `Stored: ${stored.verdict.image}.`;
}

function judge(isCorrect) {
  return act(async () => {
    const card = cards[position];
    const verdict = current(card);
    const shown = shownItems(card);
    let chosen = picked === null ? shown.filter((index) => !verdict.correct.has(index) && !verdict.wrong.has(index)) : [picked];
    if (!chosen.length) chosen = shown; // the image has a verdict: change it
    const [yes, no] = isCorrect ? [verdict.correct, verdict.wrong] : [verdict.wrong, verdict.correct];
    for (const index of chosen) {
      yes.add(index);
      no.delete(index);
    }
    if (!isCorrect && !shown.length) {
      say("There is no detection to judge as wrong. If the model missed something, press m.");
      return;
    }
    await store(verdict);
  });
}

function miss() {
  return act(async () => {
    const verdict = current(cards[position]);
    verdict.missed = true;
    verdict.missed_label = byId("missed-label").value.trim() || null;
    await store(verdict);
  });
}

function undo() {
  return act(async () => {
    const last = given.at(-1);
    if (!last) return;
    const [card, revision] = last;
    const asked = new URLSearchParams({ revision });
    let stored;
    try {
      stored = await ask(`${verdictUrl(card)}?${asked}`, { method: "DELETE" });
    } catch (error) {
      if (error.status === 409) given.pop(); // else it can be tried again
      throw error;
    }
    given.pop();
    card.verdict = stored.verdict;
    show(cards.indexOf(card));
    byId("status").textContent = "Undone.";
  });
}

function move(step) {
  return act(async () => {
    const wanted = position + step;
    if (wanted >= cards.length && !await load()) return finish(false);
    if (wanted >= 0 && wanted < cards.length) show(wanted);
    return undefined;
  });
}

const KEYS = {
  c: () => judge(true),
  w: () => judge(false),
  m: miss,
  u: undo,
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  Escape: () => { pick(null); byId("name").focus({ preventScroll: true }); },
  "?": () => byId("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select, textarea");
  if (isTyping && event.key === "Escape") event.target.blur();
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || event.repeat || byId("help").open) return;
  if (position < 0) return;
  if (/^[1-9]$/.test(event.key)) {
    const button = byId("detections").querySelectorAll("button")[Number(event.key) - 1];
    button?.focus();
  } else if (Object.hasOwn(KEYS, event.key)) {
    KEYS[event.key]();
  } else {
    return;
  }
  event.preventDefault();
});

byId("correct").addEventListener("click", () => judge(true));
byId("wrong").addEventListener("click", () => judge(false));
byId("missed").addEventListener("click", miss);
byId("undo").addEventListener("click", undo);
byId("previous").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
byId("help-button").addEventListener("click", () => byId("help").showModal());

async function count() {
  const found = await ask(`${data.count}?${new URLSearchParams(data.filter)}`);
  byId("count").textContent = found.count === null
    ? found.reason
    : `About ${found.count} images without a verdict, ${found.reviewed} with a verdict (${found.reads} reads). `
      + "This is an estimate: verdicts of deleted results count too.";
}

guard(async () => {
  await load();
  const at = cards.findIndex((card) => card.id === new URLSearchParams(location.search).get("at"));
  if (at >= 0) show(at);
  else await showUnreviewed(0);
  await count();
});
