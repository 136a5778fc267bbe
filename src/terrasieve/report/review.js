// The review page: takes a decision per key, shows the next pair, and keeps in step with other tabs.
// Last of its three scripts, after review_sources.js and review_view.js.

const FILTERS = ["verdict", "kind", "source", "sort"];
const AHEAD = 3; // pairs read before they are wanted
const POLL_MS = 2000;
const KEPT = { left: "kept left", right: "kept right", both: "kept both" };

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
