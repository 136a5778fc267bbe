"use strict";
// The page of a search: compares the vectors that it holds. The address's hash is the place that is asked, so that the
// browser's own buttons go back and forth.
const held = JSON.parse(document.getElementById("held").textContent);
const N = held.ids.length, D = held.width;
const codes = Int8Array.from(atob(held.codes), (letter) => letter.charCodeAt(0));
const lengths = Float64Array.from({ length: N }, (_, n) => Math.sqrt(dot(n, n)) || 1);
const list = document.querySelector("#hits ol"), layer = document.getElementById("marks");
const several = new Set(held.image).size > 1;

function dot(a, b) {
  let sum = 0;
  for (let d = 0, i = a * D, j = b * D; d < D; d++) sum += codes[i + d] * codes[j + d];
  return sum;
}

function near(a, b) {
  if (!held.apart || held.image[a] !== held.image[b]) return false;
  const [x, y] = held.centre[a], [u, v] = held.centre[b];
  return Math.max(Math.abs(x - u), Math.abs(y - v)) < held.apart;
}

function alike(asked) {
  const scores = Float64Array.from({ length: N }, (_, n) => dot(asked, n) / lengths[asked] / lengths[n]);
  const order = [...Array(N).keys()].filter((n) => n !== asked).sort((a, b) => scores[b] - scores[a] || a - b);
  const hits = [];
  for (const n of order) {
    if (hits.length === held.count) break;
    if (!near(n, asked) && !hits.some((other) => near(n, other))) hits.push(n);
  }
  return { scores, hits };
}

function show(thumb, n) {
  const last = Math.max(held.across - 1, 1), rows = Math.max(Math.ceil(N / held.across) - 1, 1);
  thumb.style.backgroundPosition = `${(100 * (n % held.across)) / last}% ${(100 * Math.floor(n / held.across)) / rows}%`;
}

function element(tag, kind, text) {
  const made = document.createElement(tag);
  made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

function light(n, on) {
  for (const one of [rects[n], list.querySelector(`[data-place="${n}"]`)]) one?.classList.toggle("on", on);
}

function linked(part, n) {
  part.dataset.place = n;
  part.addEventListener("click", () => { location.hash = n; });
  part.addEventListener("mouseenter", () => light(n, true));
  part.addEventListener("mouseleave", () => light(n, false));
}

function hit(n, score) {
  const button = element("button", "");
  const thumb = element("span", "thumb");
  show(thumb, n);
  button.type = "button";
  button.title = held.ids[n];
  button.append(thumb, element("b", "score", score.toFixed(3)), element("span", "place", held.where[n]));
  if (several) button.append(element("span", "name", held.names[n]));
  linked(button, n);
  const item = document.createElement("li");
  item.append(button);
  return item;
}

const rects = held.marks.map((mark, n) => {
  if (!mark || !layer) return null;
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  ["x", "y", "width", "height"].forEach((name, side) => rect.setAttribute(name, mark[side]));
  linked(rect, n);
  return rect;
});
if (several) document.getElementById("map")?.classList.add("dots");

function ask() {
  const given = Number(location.hash.slice(1));
  const asked = Number.isInteger(given) && given >= 0 && given < N ? given : 0;
  const { scores, hits } = alike(asked);
  show(document.querySelector("#asked .thumb"), asked);
  document.querySelector("#asked .place").textContent = held.where[asked] || held.names[asked];
  document.querySelector("#asked .id").textContent = (several ? `${held.names[asked]} · ` : "") + held.ids[asked];
  document.getElementById("first").disabled = asked === 0;
  list.replaceChildren(...hits.map((n) => hit(n, scores[n])));
  if (!layer) return;
  const sorted = Float64Array.from(scores).sort();
  const low = sorted[Math.floor(N * 0.02)], high = sorted[Math.max(N - 2, 0)];
  rects.forEach((rect, n) => {
    const shade = Math.max(0, Math.min(8, Math.floor(((scores[n] - low) / (high - low || 1)) * 9)));
    rect?.setAttribute("class", `s${shade}`);
  });
  const top = [...[...hits].reverse(), asked].map((n) => rects[n]).filter(Boolean);
  const under = rects.filter((rect) => rect && !top.includes(rect));
  hits.forEach((n) => rects[n]?.classList.add("hit"));
  rects[asked]?.classList.add("own");
  layer.replaceChildren(...under, ...top);
  document.querySelector(".low").textContent = low.toFixed(2);
  document.querySelector(".high").textContent = high.toFixed(2);
}

document.getElementById("first").addEventListener("click", () => { location.hash = 0; });
addEventListener("hashchange", () => { ask(); scrollTo(0, 0); });
ask();
