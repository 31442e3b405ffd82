// Draws what the daemon says. No library; texts are set as text, never as HTML.
"use strict";
const POINTS = 600;
const series = new Map();   // volume -> points
const cards = new Map();    // volume -> elements
let spoken = "";

const units = ["B", "KiB", "MiB", "GiB", "TiB"];
function bytes(n) { let u = 0; while (n >= 1023.95 && u < 4) { n /= 1024; u++; } return (u ? n.toFixed(1) : Math.round(n)) + " " + units[u]; }
function span(s) {
  if (!(s > 0)) return "0 ms";
  if (s < 1e-3) return Math.round(s * 1e6) + " µs";
  if (s < 1) return (s * 1e3).toFixed(s < 0.01 ? 1 : 0) + " ms";
  if (s < 60) return s.toFixed(1) + " s";
  if (s < 3600) return Math.round(s / 60) + " min";
  return s < 172800 ? (s / 3600).toFixed(1) + " h" : (s / 86400).toFixed(1) + " d";
}
function number(n) { return Math.round(n).toLocaleString("en"); }
function clock(ms) { return new Date(ms).toLocaleTimeString([], { hourCycle: "h23" }); }
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
function mood(state) {
  if (["live", "settled"].includes(state)) return "good";
  if (["initial", "lagging", "catching-up", "applying", "staging", "paused"].includes(state)) return "busy";
  return "bad";
}

const PLOTS = [
  { key: "sent", title: "to the replica", show: n => bytes(n) + "/s" },
  { key: "ops", title: "operations", show: n => number(n) + "/s" },
  { key: "lag", title: "lag", show: span, only: "mount" },
  { key: "latency", title: "mean time of a call", show: n => span(n / 1e3), only: "mount" },
];

function plot(title) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "plot"); svg.setAttribute("viewBox", "0 0 600 100");
  svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("role", "img");
  const draws = (tag, attributes = {}) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const path = draws("path"), area = draws("path", { class: "area" });
  for (const y of [4, 51]) svg.append(draws("line", { x1: 0, x2: 600, y1: y, y2: y }));
  svg.append(path, area);
  const now = element("span"), axis = element("div", { class: "axis", "aria-hidden": "true" }, element("span", {}, "5 min ago"), element("span", {}, "now"));
  const figure = element("figure", {}, element("figcaption", {}, element("span", {}, title), now), svg, axis);
  return { svg, path, area, now, figure };
}
function draw(plot, points, how) {
  const values = points.map(point => point[how.key] || 0);
  const most = Math.max(...values, 1e-9), last = values.length ? values[values.length - 1] : 0;
  const step = 600 / (POINTS - 1), from = POINTS - values.length;
  const line = values.map((v, i) => (i ? "L" : "M") + ((from + i) * step).toFixed(1) + " " + (98 - 94 * v / most).toFixed(1)).join("");
  plot.path.setAttribute("d", line);
  plot.area.setAttribute("d", line && `${line}L600 98L${(from * step).toFixed(1)} 98Z`);
  const text = how.show(last) + " · at most " + how.show(most > 1e-9 ? most : 0);
  if (plot.now.textContent !== text) { plot.now.textContent = text; plot.svg.setAttribute("aria-label", how.title + ": now " + text + " in five minutes"); }
}

function card(volume) {
  const id = "v" + cards.size;
  const made = { root: element("article", { "aria-labelledby": id }), title: element("h2", { id }), state: element("span", { class: "state" }),
    peer: element("span", { class: "soft" }), why: element("p"), error: element("p", { class: "bad" }), figures: element("dl", { class: "figures" }),
    work: element("div"), plots: element("div", { class: "plots" }), more: element("details", {}, element("summary", {}, "Details")),
    details: element("table"), waits: element("div", { class: "lines" }), busy: element("div"), recent: element("div", { class: "lines recent" }), calls: element("div", { class: "calls" }), drawn: [] };
  for (const how of PLOTS) if (!how.only || how.only === volume.kind) {
    const one = plot(how.title); made.drawn.push([one, how]); made.plots.append(one.figure);
  }
  made.more.append(made.details);
  made.root.append(element("div", { class: "head" }, made.title, made.state, made.peer), made.why, made.error, made.figures, made.work, made.waits, made.plots,
    element("div", { class: "pair" }, element("div", { class: "side" }, made.busy, made.calls), made.recent), made.more);
  document.getElementById("volumes").append(made.root);
  return made;
}
function text(node, value) { if (node.textContent !== value) node.textContent = value; }
function rows(table, head, lines) {
  const row = (tag, cells) => element("tr", {}, ...cells.map((cell, i) => {
    const how = head[i] || {};
    return element(tag, how.number ? { class: "number" } : how.any ? { class: "any" } : {}, cell);
  }));
  const body = element("tbody", {}, ...lines.map(line => row("td", line)));
  const parts = head.some(cell => cell.title) ? [element("thead", {}, row("th", head.map(cell => cell.title)))] : [];
  table.replaceChildren(...parts, body);
}
function block(node, title, head, lines) {
  if (!lines.length) { node.replaceChildren(); return; }
  let table = node.querySelector("table");
  if (!table) { table = element("table"); node.replaceChildren(element("h3", {}, title), table); }
  const stamp = JSON.stringify(lines);
  if (node.dataset.stamp !== stamp) { node.dataset.stamp = stamp; rows(table, head, lines); }
}
function work(node, progress) {
  if (!progress) { node.replaceChildren(); return; }
  let bar = node.querySelector("progress");
  if (!bar) { bar = element("progress", { "aria-label": "progress" }); node.replaceChildren(element("p"), bar); }
  const byBytes = progress.bytes_total > 0, done = byBytes ? progress.bytes_done : progress.files_done, all = byBytes ? progress.bytes_total : progress.files_total;
  bar.max = Math.max(all, 1); bar.value = Math.min(done, bar.max);
  const rate = progress.seconds > 0 ? done / progress.seconds : 0;
  const left = rate > 0 && all > done ? ", about " + span((all - done) / rate) + " left" : "";
  text(node.querySelector("p"), `${progress.what}: ${number(progress.files_done)} of ${number(progress.files_total)} files` +
    (progress.bytes_done ? `, ${bytes(progress.bytes_done)}` : "") + (byBytes ? ` of ${bytes(progress.bytes_total)}` : "") + `, ${span(progress.seconds)}${left}`);
}
function show(volume) {
  if (!cards.has(volume.volume)) cards.set(volume.volume, card(volume));
  const to = cards.get(volume.volume);
  if (to.title.dataset.place !== volume.place) {
    to.title.dataset.place = volume.place;
    to.title.replaceChildren(volume.volume + " ", element("span", { class: "place" }, volume.place));
  }
  text(to.state, volume.state); to.state.className = "state " + mood(volume.state);
  text(to.peer, volume.kind === "mount" ? "replica at " + volume.peer : volume.peer === "no writer" ? "no writer" : "written by " + volume.peer);
  // Since when matters as much as why; of an outage also that nothing has to be done here.
  const since = mood(volume.state) !== "good" && volume.since ? `${volume.state} since ${clock(volume.since)}` : "";
  const goes = volume.kind === "mount" && volume.state === "offline" ? "Work goes on here, and it connects again by itself." : "";
  text(to.why, [since && volume.reason ? since + ": " + volume.reason : since || volume.reason, goes].filter(Boolean).join(" — ")); to.why.hidden = !to.why.textContent;
  text(to.error, volume.error && volume.error !== volume.reason ? "Last error: " + volume.error : ""); to.error.hidden = !to.error.textContent; to.error.className = mood(volume.state) === "good" ? "soft" : "bad";
  const points = series.get(volume.volume) || [], last = points[points.length - 1] || {};
  const figures = [["behind", number(volume.behind) + (volume.behind === 1 ? " op" : " ops")]];
  if (volume.kind === "mount") figures.push(["lag", span(volume.lag)], ["fsync", volume.fsync]);
  figures.push(["to the replica", bytes(last.sent || 0) + "/s"], ["operations", number(last.ops || 0) + "/s"]);
  const stamp = JSON.stringify(figures);
  if (to.figures.dataset.stamp !== stamp) {
    to.figures.dataset.stamp = stamp;
    to.figures.replaceChildren(...figures.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  }
  work(to.work, volume.progress);
  for (const [one, how] of to.drawn) draw(one, points, how);
  block(to.waits, "Waits for the replica", [{}, { any: true }, {}, { number: true }], (volume.waiting || []).map(call => [call.what, call.path, call.process, span(call.seconds)]));
  block(to.busy, "Busiest files", [{ any: true }, { number: true }], volume.busy.map(file => [file.path, bytes(file.bytes) + "/s"]));
  block(to.recent, "Lately in the replica", [{}, {}, { any: true }, {}], volume.recent.slice(0, 12).map(item => [clock(item.t), item.what, item.path + (item.to ? " → " + item.to : ""), item.process]));
  block(to.calls, "Calls", [{ title: "call" }, { title: "number", number: true }, { title: "half within", number: true }, { title: "99 % within", number: true }],
    volume.operations.map(op => [op.op, number(op.count), span(op.p50), span(op.p99)]));
  if (to.more.open || !to.details.firstChild) {
    const value = row => row.unit === "B" ? bytes(row.value) : row.unit === "s" ? span(row.value) : typeof row.value === "number" ? number(row.value) : row.value;
    rows(to.details, [{}, { any: true }], volume.details.filter(row => row.value !== "").map(row => [row.label, value(row)])
      .concat(volume.workers.map(worker => ["worker " + worker.name, worker.state])));
  }
}
function clients(all) {
  const section = document.getElementById("clients"), stamp = JSON.stringify(all);
  section.hidden = !all.length;
  if (section.dataset.stamp === stamp) return;
  section.dataset.stamp = stamp;
  const when = ms => ms ? new Date(ms).toLocaleString() : "not since the start";
  rows(section.querySelector("table"), [{ title: "who", any: true }, { title: "may", any: true }, { title: "connections", number: true }, { title: "connected last" }, { title: "certificate until" }],
    all.map(one => [one.name, one.grants, number(one.connections), when(one.seen), new Date(one.expires).toLocaleDateString()]));
}
function take(said) {
  document.getElementById("lost").hidden = true;
  text(document.getElementById("who"), `${said.daemon} ${said.version} on ${said.host}, pid ${said.pid}, since ${new Date(said.started).toLocaleString()}`);
  document.title = said.volumes.map(v => v.volume + " " + v.state).join(", ") + " · TandemFS";
  for (const volume of said.volumes) {
    if (volume.plots.series) series.set(volume.volume, volume.plots.series);
    else if (volume.plots.newest) {
      const points = series.get(volume.volume) || [], last = points[points.length - 1];
      if (!last || last.t !== volume.plots.newest.t) points.push(volume.plots.newest);
      while (points.length > POINTS) points.shift();
      series.set(volume.volume, points);
    }
    show(volume);
  }
  for (const [name, gone] of cards) if (!said.volumes.some(v => v.volume === name)) { gone.root.remove(); cards.delete(name); }
  const main = document.getElementById("volumes");
  if (!said.volumes.length && !main.querySelector("p")) main.append(element("p", {}, "There is no volume yet: the first mount makes one."));
  else if (said.volumes.length) main.querySelectorAll(":scope > p").forEach(p => p.remove());
  clients(said.clients || []);
  const list = document.getElementById("events"), stamp = JSON.stringify(said.events);
  if (list.dataset.stamp !== stamp) {
    list.dataset.stamp = stamp;
    list.replaceChildren(...said.events.slice(0, 50).map(event =>
      element("li", {}, element("time", { datetime: new Date(event.t).toISOString() }, clock(event.t)), `${event.volume}: ${event.text}`)));
  }
  const words = said.volumes.map(v => `${v.volume} is ${v.state}`).join(". ");
  if (words !== spoken) { spoken = words; text(document.getElementById("said"), words); }
}
function listen() {
  const stream = new EventSource("/api/stream");
  stream.onmessage = event => take(JSON.parse(event.data));
  stream.onerror = () => { document.getElementById("lost").hidden = false; if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 2000); };
}
listen();
