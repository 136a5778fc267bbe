// Drawing of the review page: a pair side by side, over one another, as difference, zoomed; what is said of it.
// Second of its three scripts; what is on the screen is review.js's state.

const ZOOMS = [1, 2, 4, 8, 16];

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
