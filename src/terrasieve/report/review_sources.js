// Sources of the review page's pairs: the server beside this file, or, in a page without one, what the page itself holds.
// First of the three scripts (review_view.js, review.js) that together are the page's one.
"use strict";

const byId = (id) => document.getElementById(id);

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
