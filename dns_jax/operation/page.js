"use strict";
const EVERY = 3000; // ms
const SHOWN = 50;
const SVG = "http://www.w3.org/2000/svg";
const get = (id) => document.getElementById(id);
const format = (x) => (x === null ? "-" : Number(x.toPrecision(4)).toString());
const clock = (seconds) => new Date(1000 * seconds).toLocaleString();
let latest = null;
let drawn = "";

function make(tag, text, parent) {
  const element = document.createElement(tag);
  element.textContent = text;
  parent.append(element);
  return element;
}

function draw(tag, attributes, parent) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

function play(row) {
  const audio = get("audio");
  audio.src = `/sound/${row.id}`;
  get("playing").textContent = row.clip;
  audio.play().catch((error) => {
    if (error.name !== "AbortError") {
      get("playing").textContent = `${row.clip} cannot be played; it may have been moved or changed`;
    }
  });
}

function fillRanking() {
  const chosen = get("machine").value;
  const rows = latest.machines
    .filter((machine) => chosen === "" || machine.name === chosen)
    .flatMap((machine) => machine.rows.map((row) => ({ ...row, machine: machine.name })));
  rows.sort((a, b) => (b.ratio ?? -1) - (a.ratio ?? -1) || a.id - b.id);
  const body = get("ranking");
  body.replaceChildren();
  for (const row of rows.slice(0, SHOWN)) {
    const line = make("tr", "", body);
    if (row.ratio > 1) line.className = "anomalous";
    const button = make("button", "▶", make("td", "", line));
    button.type = "button";
    button.setAttribute("aria-label", `play ${row.clip}`);
    button.addEventListener("click", () => play(row));
    make("td", row.clip, line).title = row.path;
    const numbers = [row.score, row.threshold, row.ratio].map(format);
    const known = [row.machine, row.section, row.domain, clock(row.arrived)];
    for (const text of [...known, ...numbers]) make("td", text, line);
  }
}

function drawTrend(title, rows) {
  const [width, height, left, bottom] = [520, 150, 52, 18];
  const place = make("div", "", get("trends"));
  make("h3", title, place);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, place);
  draw("title", {}, svg).textContent = `scores of ${title}`;
  const threshold = rows.at(-1).threshold;
  const scores = rows.map((row) => row.score).filter((x) => x !== null);
  const all = threshold === null ? scores : [...scores, threshold];
  const times = rows.map((row) => row.arrived);
  const low = all.reduce((a, b) => Math.min(a, b), Infinity);
  const high = all.reduce((a, b) => Math.max(a, b), -Infinity);
  const from = times.reduce((a, b) => Math.min(a, b));
  const to = times.reduce((a, b) => Math.max(a, b));
  const x = (t) => left + 6 + ((width - left - 12) * (t - from)) / (to - from || 1);
  const y = (s) => height - bottom - 6 - ((height - bottom - 12) * (s - low)) / (high - low || 1);
  draw("rect", { class: "frame", x: left, y: 0.5, width: width - left - 0.5, height: height - bottom }, svg);
  if (all.length) {
    draw("text", { x: left - 4, y: y(high) + 4, "text-anchor": "end" }, svg).textContent = format(high);
    draw("text", { x: left - 4, y: y(low) + 4, "text-anchor": "end" }, svg).textContent = format(low);
  }
  draw("text", { x: left, y: height - 4 }, svg).textContent = clock(from);
  draw("text", { x: width, y: height - 4, "text-anchor": "end" }, svg).textContent = clock(to);
  if (threshold !== null) {
    draw("line", { class: "threshold", x1: left, x2: width, y1: y(threshold), y2: y(threshold) }, svg);
  }
  for (const row of rows.filter((row) => row.score !== null)) {
    const kind = row.ratio > 1 ? "anomalous" : "normal";
    const dot = draw("circle", { class: kind, cx: x(row.arrived), cy: y(row.score), r: 3 }, svg);
    draw("title", {}, dot).textContent = `${row.clip}: ${format(row.score)}, ${clock(row.arrived)}`;
    dot.addEventListener("click", () => play(row));
  }
}

function fillMachines() {
  const select = get("machine");
  const known = new Set([...select.options].map((option) => option.value));
  for (const { name } of latest.machines) {
    if (!known.has(name)) make("option", name, select).value = name;
  }
  get("trends").replaceChildren();
  for (const { name, rows } of latest.machines) {
    const sections = [...new Set(rows.map((row) => row.section))].sort((a, b) => a - b);
    for (const section of sections) {
      drawTrend(`${name}, section ${section}`, rows.filter((row) => row.section === section));
    }
  }
}

function fillState() {
  const { scored, anomalous, duplicate, refused, waiting, oldest } = latest;
  const held = latest.machines.map(({ name, held }) => `${name} ${held}`).join(", ");
  const since = waiting ? ` (the oldest for ${Math.round(oldest)} s)` : "";
  get("state").textContent =
    `Since the start: ${scored} scored, ${anomalous} of them anomalous, ${duplicate} duplicates, ` +
    `${refused} refused. ${waiting} waiting${since}. In F: ${held}.`;
  get("trouble").textContent = latest.trouble;
  const list = get("messages");
  list.replaceChildren();
  for (const { time, text } of [...latest.messages].reverse()) {
    make("li", `${clock(time)}: ${text}`, list);
  }
}

async function refresh() {
  try {
    const answer = await fetch("/ranking.json");
    if (!answer.ok) throw new Error(`the monitor answers ${answer.status}`);
    latest = await answer.json();
    fillState();
    const machines = JSON.stringify(latest.machines);
    if (machines !== drawn) {
      fillRanking();
      fillMachines();
      drawn = machines;
    }
    document.body.dataset.ready = "yes";
  } catch (error) {
    get("trouble").textContent = `This page is not up to date: ${error.message}`;
  }
  setTimeout(refresh, EVERY);
}

get("machine").addEventListener("change", fillRanking);
get("choose").addEventListener("submit", (event) => event.preventDefault());
refresh();
