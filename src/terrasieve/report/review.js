// The review page: shows a pair, takes a decision per key, and keeps in step with other tabs. Two sources of pairs:
// the server beside this file, or, in a page without one, what the page itself holds.
"use strict";

const byId = (id) => document.getElementById(id);
const FILTERS = ["verdict", "kind", "source", "sort"];
const AHEAD = 3; // pairs read before they are wanted
const POLL_MS = 2000;
const ZOOMS = [1, 2, 4, 8, 16];
const KEPT = { left: "kept left", right: "kept right", both: "kept both" };

// ---------------------------------------------------------------------------------------------------- sources
class Served {
  async ask(path, options) {
    const answer = await fetch(path, options);
    const said = await answer.json();
    if (!answer.ok) throw Object.assign(new Error(said.error), { answered: true });
    return said;
  }
  pairs(filter) { return this.ask("pairs?" + new URLSearchParams(filter)); }
  pair(number) { return this.ask(`pair/${number}`); }
  changes(since) { return this.ask(`changes?since=${since}`); }
  decide(pair, decision, tab) {
    const body = JSON.stringify({ pair, decision, tab });
    return this.ask("decide", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  }
  picture(number, name) { return `pair/${number}/${name}.jpg`; }
  thumbnail(id) { return `image/${id}.jpg`; }
}

class Held {
  constructor(held) {
    this.held = held;
    this.byNumber = new Map(held.pairs.map((pair) => [pair.number, pair]));
    this.key = `terrasieve review ${held.key}`;
  }
  lines() { return (localStorage.getItem(this.key) || "").split("\n").filter(Boolean).map((line) => JSON.parse(line)); }
  decisions() {
    const found = new Map(this.held.pairs.filter((pair) => pair.decision).map((pair) => [pair.number, pair.decision]));
    for (const line of this.lines()) {
      const pair = this.held.pairs.find((other) => other.left.id === line.id_a && other.right.id === line.id_b);
      if (pair && line.decision === "undo") found.delete(pair.number);
      else if (pair) found.set(pair.number, line.decision);
    }
    return found;
  }
  async pairs(filter) {
    const decided = this.decisions();
    const all = this.held.pairs.filter((pair) =>
      (filter.verdict === "all" || pair.verdict === filter.verdict) && (filter.kind === "all" || pair.kind === filter.kind) &&
      (filter.source === "all" || pair.sources.includes(filter.source)) && (!filter.group || String(pair.group) === filter.group));
    const likeness = (pair) => (pair.likeness === null ? Infinity : (filter.sort === "farthest" ? 1 : -1) * pair.likeness);
    const by = {
      file: () => 0,
      closest: (a, b) => likeness(a) - likeness(b) || 0,
      farthest: (a, b) => likeness(a) - likeness(b) || 0,
      group: (a, b) => (a.group ?? Infinity) - (b.group ?? Infinity) || likeness(a) - likeness(b) || 0,
    };
    const order = all.filter((pair) => !filter.undecided || !decided.has(pair.number)).sort(by[filter.sort]);
    return { order: order.map((pair) => pair.number), decisions: Object.fromEntries(decided), total: all.length, version: this.lines().length };
  }
  async pair(number) { return { ...this.byNumber.get(number), decision: this.decisions().get(number) || "" }; }
  async changes(since) {
    const count = this.lines().length;
    if (count === since) return { changes: [], version: count, again: false };
    return { changes: [...this.decisions()], version: count, again: true };
  }
  async decide(number, decision, tab) {
    const pair = this.byNumber.get(number);
    const line = { id_a: pair.left.id, id_b: pair.right.id, decision, time: new Date().toISOString(), tab };
    localStorage.setItem(this.key, (localStorage.getItem(this.key) || "") + JSON.stringify(line) + "\n");
    return { version: this.lines().length };
  }
  picture(number, name) { return this.byNumber.get(number).pictures[name]; }
  thumbnail(id) { return this.held.thumbnails[id] || "data:,"; }
  download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([localStorage.getItem(this.key) || ""], { type: "application/jsonl" }));
    link.download = "decisions.jsonl";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
}

// ---------------------------------------------------------------------------------------------------- state
const source = byId("held") ? new Held(JSON.parse(byId("held").textContent)) : new Served();
const tab = sessionStorage.getItem("tab") || [...crypto.getRandomValues(new Uint8Array(4))].map((n) => n.toString(16).padStart(2, "0")).join("");
sessionStorage.setItem("tab", tab);
let order = []; // numbers of the pairs that the filters leave
let decisions = new Map(); // of pairs known to be decided
let total = 0; // pairs that the filters leave, decided ones included
let version = 0;
let at = 0; // place in order
let shown = null; // details of the pair on the screen, null until its pictures can be seen
let busy = false;
let group = "";
let loads = 0; // of filters, so that an answer that was overtaken is dropped
let zoom = 1;
let spot = [0.5, 0.5]; // where one looks, in shares of what both pictures show
const made = []; // times of this tab's decisions
const cache = new Map(); // number -> promise of details, pictures loaded

const undoable = () => JSON.parse(sessionStorage.getItem("undo") || "[]");
const left = () => order.filter((number) => !decisions.has(number)).length;

// ---------------------------------------------------------------------------------------------------- pairs
async function load(keep) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, byId(name).value]));
  if (byId("undecided").checked) filter.undecided = "1";
  if (group) filter.group = group;
  const [mine, before] = [++loads, shown];
  shown = null; // keys wait for what the filters leave
  try {
    const found = await source.pairs(filter);
    if (mine !== loads) return undefined;
    order = found.order;
    total = found.total;
    version = found.version;
    decisions = new Map(Object.entries(found.decisions).map(([number, decision]) => [Number(number), decision]));
    trouble("");
  } catch (error) {
    shown = before;
    return trouble(error);
  }
  byId("group").hidden = !group;
  byId("group").textContent = `group ${group} ×`;
  const place = order.indexOf(keep);
  const first = order.findIndex((number) => !decisions.has(number));
  if (place >= 0) return show(place);
  return left() ? show(first) : finish();
}

function fetched(number) {
  if (!cache.has(number)) {
    const promise = source.pair(number).then(async (pair) => {
      const names = ["left", "right", "difference"].filter((name) => (name === "difference" ? pair.difference : !pair[name].error));
      const images = names.map(async (name) => {
        const image = new Image();
        image.src = source.picture(number, name);
        await image.decode().catch(() => { pair.failed = true; });
        return image;
      });
      pair.images = Object.fromEntries((await Promise.all(images)).map((image, n) => [names[n], image]));
      return pair;
    });
    cache.set(number, promise);
    promise.catch(() => cache.delete(number));
    if (cache.size > 24) cache.delete(cache.keys().next().value);
  }
  return cache.get(number);
}

async function show(place) {
  at = Math.max(0, Math.min(order.length - 1, place));
  const number = order[at];
  shown = null;
  count();
  let pair;
  try {
    pair = await fetched(number);
  } catch (error) {
    return trouble(error);
  }
  if (order[at] !== number) return; // the reader has gone on
  shown = pair;
  draw(pair);
  for (let step = 1; step <= AHEAD; step++) if (at + step < order.length) fetched(order[at + step]).catch(() => {});
}

function step(by) {
  if (!byId("done").hidden) return order.length && show(by < 0 ? order.length - 1 : 0);
  if (at + by >= 0 && at + by < order.length) show(at + by);
}

// ---------------------------------------------------------------------------------------------------- decisions
async function decide(decision) {
  if (!shown || busy) return;
  busy = true;
  const number = shown.number;
  try {
    if (await write(number, decision)) {
      sessionStorage.setItem("undo", JSON.stringify([...undoable(), number].slice(-1000)));
      made.push(Date.now());
      say(`Pair ${at + 1}: ${KEPT[decision]}`);
      advance();
    }
  } finally {
    busy = false;
  }
}

async function undo() {
  if (busy) return;
  busy = true;
  try {
    const stack = undoable();
    const number = stack.length ? stack.pop() : order[at];
    if (number === undefined || (!decisions.has(number) && !stack.length)) {
      sessionStorage.setItem("undo", "[]");
      return say("Nothing to undo");
    }
    if (!(await write(number, "undo"))) return;
    sessionStorage.setItem("undo", JSON.stringify(stack));
    made.pop();
    say("Undone");
    if (!order.includes(number)) order.splice(at, 0, number);
    show(order.indexOf(number));
  } finally {
    busy = false;
  }
}

async function write(number, decision) {
  try {
    await source.decide(number, decision, tab);
  } catch (error) {
    trouble(error, "This decision was not kept. ");
    return false;
  }
  trouble("");
  take(number, decision === "undo" ? "" : decision);
  return true;
}

function take(number, decision) {
  if (decision) decisions.set(number, decision);
  else decisions.delete(number);
}

function advance() {
  if (!left()) return finish();
  if (!byId("undecided").checked && at + 1 < order.length) return show(at + 1);
  const after = order.findIndex((number, place) => place > at && !decisions.has(number));
  show(after >= 0 ? after : order.findIndex((number) => !decisions.has(number)));
}

async function poll() {
  try {
    const news = await source.changes(version);
    if (news.again) decisions.clear();
    for (const [number, decision] of news.changes) take(number, decision);
    version = news.version;
    if (news.changes.length || news.again) refresh();
    if (!byId("trouble").hidden && !busy) trouble("");
  } catch (error) {
    trouble(error);
  }
  setTimeout(poll, POLL_MS);
}

function refresh() {
  count();
  if (shown) mark(shown);
  if (order.length && !left() && byId("done").hidden && byId("undecided").checked) finish();
}

function finish() {
  shown = null;
  count();
  byId("pair").hidden = true;
  byId("done").hidden = false;
  const said = [...decisions.values()];
  const plain = byId("verdict").value === "review" && byId("kind").value === "all" && byId("source").value === "all" && !group;
  const tally = Object.keys(KEPT).map((kind) => `${KEPT[kind]} ${said.filter((other) => other === kind).length.toLocaleString("en")}`);
  byId("done").querySelector("h2").textContent = total ? `All ${total.toLocaleString("en")} pairs are decided` : plain ? "No pair needs a review" : "No pair matches these filters";
  byId("done").querySelector(".counts").textContent = said.length ? tally.join(" · ") : "";
  const next = byId("done").querySelector(".next");
  next.textContent = total ? "Decisions are in " : "";
  if (total) next.append(element("code", document.body.dataset.decisions), byId("held") ? " once downloaded and appended." : ". The next ", byId("held") ? "" : element("code", "terrasieve curate"), byId("held") ? "" : " reads them.");
  byId("again").hidden = !total;
  byId("reload").hidden = total > 0 && byId("verdict").value === "all" && byId("kind").value === "all" && byId("source").value === "all" && !group;
  say(byId("done").querySelector("h2").textContent);
}

// ---------------------------------------------------------------------------------------------------- drawing
function element(name, text, kind) {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function draw(pair) {
  byId("done").hidden = true;
  byId("pair").hidden = false;
  for (const side of ["left", "right"]) side_(pair, side);
  compare(pair);
  mark(pair);
  byId("tags").replaceChildren(element("span", pair.kind, "strong"), element("span", `judged: ${pair.verdict}${pair.by ? ` by ${pair.by}` : ""}`, ""), ...pair.tags.map((tag) => element("span", tag)));
  byId("fields").tBodies[0].replaceChildren(...pair.fields.map(([name, a, b]) => {
    const row = element("tr", "", a === b || name === "file" ? "" : "other");
    const head = element("th", name);
    head.scope = "row";
    row.append(head, element("td", a || "–"), element("td", b || "–"));
    return row;
  }));
  byId("others").hidden = !pair.others.length;
  byId("others").querySelector("h2").replaceChildren(`Also in group ${pair.group}: ${pair.others.length + pair.more} `, only(pair));
  byId("others").querySelector(".thumbs").replaceChildren(...pair.others.map((other) => {
    const image = element("img", "", other.kept ? "" : "gone");
    image.src = source.thumbnail(other.id);
    image.alt = image.title = `${other.words}, ${other.kept ? "kept" : "dropped"}`;
    return image;
  }), pair.more ? element("span", `and ${pair.more} more`, "soft") : "");
  look(zoom, spot);
}

function only(pair) {
  const button = element("button", group ? "all pairs" : "only this group");
  button.type = "button";
  button.addEventListener("click", () => { group = group ? "" : String(pair.group); load(pair.number); });
  return button;
}

function side_(pair, side) {
  const figure = byId(side);
  const said = pair[side];
  const image = figure.querySelector("img");
  figure.querySelector(".words").textContent = figure.querySelector(".words").title = said.words;
  figure.querySelector(".error").textContent = said.error ? `Cannot be read: ${said.error}` : "";
  figure.querySelector(".ground").hidden = Boolean(said.error);
  image.alt = `${side} image: ${said.words}`;
  image.src = pair.images[side] ? pair.images[side].src : "data:,";
  fit(figure.querySelector(".ground"), said.width, said.height);
  const box = said.shared;
  const outline = figure.querySelector(".shared");
  outline.hidden = !box || (box[2] > 0.999 && box[3] > 0.999);
  if (box) Object.assign(outline.style, { left: `${100 * box[0]}%`, top: `${100 * box[1]}%`, width: `${100 * box[2]}%`, height: `${100 * box[3]}%` });
}

function fit(ground, width, height) {
  const wide = width >= height;
  Object.assign(ground.style, { aspectRatio: `${width} / ${height}`, width: wide ? "100%" : "auto", height: wide ? "auto" : "100%" });
  ground.classList.toggle("coarse", Math.max(width, height) * 1.5 < ground.parentElement.clientWidth * zoom);
}

function compare(pair) {
  const overlaid = byId("show-overlay").getAttribute("aria-pressed") === "true";
  const both = pair.left.shared && pair.right.shared;
  const figure = byId("compare");
  figure.querySelector(".ground").hidden = !both;
  figure.querySelector(".error").textContent = both ? "" : pair.left.error || pair.right.error ? "Nothing to compare" : "At this offset they share no ground";
  byId("difference").hidden = overlaid || !pair.difference;
  byId("overlay").hidden = byId("wiping").hidden = !overlaid || !both;
  figure.querySelector(".words").textContent = (overlaid || !both ? "" : `× ${pair.gain}, black = same`) + (pair.common ? "" : " · each under its own stretch");
  if (!both) return;
  byId("difference").src = pair.images.difference ? pair.images.difference.src : "data:,";
  byId("difference").alt = "absolute difference of what both show";
  fit(figure.querySelector(".ground"), pair.left.shared[2] * pair.left.width, pair.left.shared[3] * pair.left.height);
  for (const [kind, side] of [["under", "right"], ["upper", "left"]]) {
    const image = figure.querySelector(`.${kind}`);
    const [x, y, width, height] = pair[side].shared;
    image.src = pair.images[side].src;
    image.alt = `${side} image, where both show the same ground`;
    Object.assign(image.style, { width: `${100 / width}%`, height: `${100 / height}%`, left: `${(-100 * x) / width}%`, top: `${(-100 * y) / height}%` });
  }
  wipe();
}

function wipe() {
  const share = Number(byId("wipe").value);
  byId("overlay").querySelector(".wipe").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
}

function flip() {
  if (byId("overlay").hidden) compared("overlay");
  byId("wipe").value = Number(byId("wipe").value) > 50 ? 0 : 100;
  wipe();
}

let blinking = null;
function blink(on) {
  clearInterval(blinking);
  blinking = on ? setInterval(flip, 600) : null;
  byId("blink").setAttribute("aria-pressed", String(on));
}

function compared(what) {
  byId("show-overlay").setAttribute("aria-pressed", String(what === "overlay"));
  byId("show-difference").setAttribute("aria-pressed", String(what === "difference"));
  if (what === "overlay") byId("wipe").value = 50;
  else blink(false);
  if (shown) compare(shown);
}

function mark(pair) {
  const said = decisions.get(pair.number) || "";
  for (const side of ["left", "right"]) {
    const kept = said === side || said === "both";
    byId(side).classList.toggle("kept", kept);
    byId(side).classList.toggle("dropped", Boolean(said) && !kept);
    byId(side).querySelector(".verdict").textContent = said ? (kept ? "keep" : "drop") : "";
  }
  for (const choice of ["left", "right", "both"]) byId(`keep-${choice}`).setAttribute("aria-pressed", String(said === choice));
}

function count() {
  const open = left();
  const done = total - open;
  byId("bar").max = total || 1;
  byId("bar").value = done;
  const recent = made.filter((time) => time > Date.now() - 600000);
  const minutes = recent.length > 3 ? (Date.now() - recent[0]) / 60000 : 0;
  const rate = minutes ? recent.length / minutes : 0;
  const wait = rate ? open / rate : 0;
  const time = wait >= 90 ? `${(wait / 60).toFixed(1)} h` : `${Math.ceil(wait)} min`;
  byId("progress").textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")} decided${rate && open ? ` · ${rate.toFixed(0)} a minute · ${time} left` : ""}`;
  byId("place").value = order.length ? at + 1 : "";
  byId("total").textContent = `of ${order.length.toLocaleString("en")}`;
}

function look(scale, where) {
  zoom = scale;
  spot = where;
  for (const view of document.querySelectorAll(".view")) {
    const ground = view.querySelector(".ground");
    const pair = shown || {};
    const side = view.parentElement.id;
    const box = (side !== "compare" && pair[side] && pair[side].shared) || [0, 0, 1, 1];
    const [x, y] = [0, 1].map((axis) => Math.max(0, Math.min(1, box[axis] + where[axis] * box[axis + 2])));
    ground.style.transformOrigin = `${100 * x}% ${100 * y}%`;
    ground.style.transform = `scale(${scale})`;
    const cross = ground.querySelector(".cross");
    Object.assign(cross.style, { left: `${100 * x}%`, top: `${100 * y}%`, transform: `scale(${1 / scale})` });
    const image = ground.querySelector("img");
    ground.classList.toggle("coarse", Math.max(image.naturalWidth, image.naturalHeight) * 1.5 < view.clientWidth * scale);
  }
}

function pointed(view, event) {
  const side = view.parentElement.id;
  const ground = view.querySelector(".ground");
  const frame = view.getBoundingClientRect();
  const box = (side !== "compare" && shown && shown[side] && shown[side].shared) || [0, 0, 1, 1];
  const size = [ground.offsetWidth, ground.offsetHeight];
  const from = [frame.left + (frame.width - size[0]) / 2, frame.top + (frame.height - size[1]) / 2];
  const place = [event.clientX, event.clientY].map((pixel, axis) => Math.max(0, Math.min(1, (pixel - from[axis]) / size[axis])));
  return place.map((share, axis) => (share - box[axis]) / box[axis + 2]);
}

function zoomed(by) {
  const now = ZOOMS.findIndex((scale) => scale >= zoom);
  look(ZOOMS[Math.max(0, Math.min(ZOOMS.length - 1, now + by))], spot);
}

function say(words) { byId("said").textContent = words; }

function trouble(error, before = "") {
  const banner = byId("trouble");
  if (error) {
    const words = error.answered ? error.message : error.message && source instanceof Served ? "The server does not answer. Start `terrasieve review` again and open the address that it prints; all that was decided is kept." : String(error.message || error);
    banner.textContent = before + words;
  }
  banner.hidden = !error;
}

// ---------------------------------------------------------------------------------------------------- input
const KEYS = {
  ArrowLeft: () => decide("left"), a: () => decide("left"), ArrowRight: () => decide("right"), d: () => decide("right"), b: () => decide("both"),
  u: undo, j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
  o: () => compared("overlay"), f: () => compared("difference"), " ": flip,
  z: () => look(ZOOMS[(ZOOMS.indexOf(zoom) + 1) % ZOOMS.length], spot), "+": () => zoomed(1), "-": () => zoomed(-1), 0: () => look(1, [0.5, 0.5]),
  "?": () => byId("help").showModal(),
};
const HELD = new Set(["ArrowDown", "ArrowUp", "j", "k", "+", "-"]); // the only keys that may repeat

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const target = event.target;
  if (target.matches("select, input[type=text], input[type=range]")) {
    if (event.key === "Escape" || (event.key === "Enter" && target.id !== "place")) target.blur();
    return;
  }
  if (event.key === " " && target.matches("button, input")) return;
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  if (!event.repeat || HELD.has(event.key)) action();
});
document.addEventListener("click", (event) => { // a clicked button must not take the space key from the page
  if (event.detail) document.activeElement.closest("button, input[type=checkbox], input[type=range]")?.blur();
});
const clicks = {
  "keep-left": () => decide("left"), "keep-right": () => decide("right"), "keep-both": () => decide("both"), undo, next: () => step(1), back: () => step(-1),
  "show-difference": () => compared("difference"), "show-overlay": () => compared("overlay"), ask: KEYS["?"], blink: () => blink(!blinking),
  again: () => { byId("undecided").checked = false; load().then(() => order.length && show(0)); },
  reload: () => { for (const name of ["verdict", "kind", "source"]) byId(name).value = "all"; group = ""; byId("undecided").checked = true; load(); },
  group: () => { group = ""; load(shown ? shown.number : undefined); }, download: () => source.download(),
};
for (const [id, action] of Object.entries(clicks)) byId(id)?.addEventListener("click", action);
for (const name of [...FILTERS, "undecided"]) byId(name).addEventListener("change", (event) => { event.target.blur(); cache.clear(); load(); });
document.querySelector(".filters").addEventListener("submit", (event) => { event.preventDefault(); });
byId("place").addEventListener("change", (event) => {
  const wanted = Number.parseInt(event.target.value, 10);
  event.target.blur();
  if (order.length && wanted) show(wanted - 1);
  else count();
});
byId("wipe").addEventListener("input", () => { blink(false); wipe(); });
for (const view of document.querySelectorAll(".view")) {
  view.addEventListener("mousemove", (event) => { byId("pair").classList.add("looking"); look(zoom, pointed(view, event)); });
  view.addEventListener("mouseleave", () => byId("pair").classList.remove("looking"));
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    look(zoom, pointed(view, event));
    zoomed(Math.sign(-event.deltaY));
  }, { passive: false });
}
addEventListener("resize", () => { if (shown) look(zoom, spot); });
load().then(() => setTimeout(poll, POLL_MS));
