"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const LABELS = { 0: "normal", 1: "anomalous", "-1": "not labelled" };
const SYMBOLS = { 0: "circle", 1: "x", "-1": "square" };
const state = { machine: 0, section: 0, by: "p" };
let playing = null;

function make(tag, text, parent) {
  const element = document.createElement(tag);
  element.textContent = text;
  parent.append(element);
  return element;
}

function format(value) {
  return value === null ? "-" : Number(value.toPrecision(4)).toString();
}

function play(clip, start, button) {
  if (playing) playing.stop();
  const audio = new Audio(clip.sound);
  const ours = () => playing !== null && playing.audio === audio;
  const stop = () => {
    audio.pause();
    if (button) button.classList.remove("on");
    if (ours()) playing = null;
  };
  const fail = (error) => {
    if (!ours() || error.name === "AbortError") return;
    stop();
    get("trouble").textContent = `${clip.name} cannot be played here; it is expected at ${
      clip.sound.startsWith("data:") ? "this page" : decodeURIComponent(clip.sound)}`;
  };
  get("trouble").textContent = "";
  audio.addEventListener("error", fail);
  audio.addEventListener("ended", stop);
  audio.addEventListener("loadedmetadata", () => {
    if (!ours()) return;
    if (start !== null) audio.currentTime = start;
    audio.play().catch(fail);
  });
  if (start !== null) {
    audio.addEventListener("timeupdate", () => {
      if (audio.currentTime > start + data.segment_seconds) stop();
    });
  }
  if (button) button.classList.add("on");
  playing = { audio, button, stop };
  audio.load();
}

for (const button of document.querySelectorAll("button.play")) {
  button.addEventListener("click", () => {
    const again = playing && playing.button === button;
    if (again) playing.stop();
    else play(data.machines[button.dataset.machine].clips[button.dataset.clip], null, button);
  });
}

function show(dot) {
  const machine = data.machines[state.machine];
  const section = machine.sections[state.section];
  const clip = machine.clips[section.clip[dot]];
  const panel = get("details");
  panel.replaceChildren();
  make("b", clip.name, panel);
  if (clip.picture) {
    const picture = make("img", "", panel);
    picture.src = clip.picture;
    picture.alt = "mel spectrum";
    const bar = make("div", "", panel);
    bar.className = "window";
    bar.style.marginLeft = `${(100 * section.start[dot]) / clip.seconds}%`;
    bar.style.width = `${Math.min(100, (100 * data.segment_seconds) / clip.seconds)}%`;
  } else {
    make("p", "Its picture is left out for the size of this page.", panel);
  }
  make("p", `${clip.domain}, ${LABELS[clip.label]}; from ${format(section.start[dot])} s: ` +
    `a_G = ${format(section.g[dot])}, a_prop = ${format(section.p[dot])}; rank ${clip.rank} of ` +
    `${machine.clips.length} recordings`, panel);
  const near = section.neighbours[dot];
  if (near.length) make("p", `Nearest of other recordings (eq. 7 takes K - 1 = ${machine.k - 1}, also of its own):`, panel);
  const list = make("ol", "", panel);
  for (const other of near) {
    const of = machine.clips[section.clip[other]];
    make("li", `${of.name}, ${LABELS[of.label]}: a_G = ${format(section.g[other])}`, list);
  }
  return near;
}

function draw() {
  const machine = data.machines[state.machine];
  const section = machine.sections[state.section];
  if (!section) {
    Plotly.purge("space");
    get("space").textContent = "Nothing is smoothed there.";
    return;
  }
  if (!get("space").data) get("space").replaceChildren();
  const values = section[state.by];
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const traces = [{
    x: section.train_x, y: section.train_y, name: "training", mode: "markers", hoverinfo: "skip",
    marker: { color: "#ccc", size: 5 },
  }];
  let first = true;
  for (const label of ["0", "1", "-1"]) {
    const dots = [...values.keys()].filter(
      (dot) => String(machine.clips[section.clip[dot]].label) === label);
    if (!dots.length) continue;
    traces.push({
      x: dots.map((dot) => section.x[dot]), y: dots.map((dot) => section.y[dot]), customdata: dots,
      name: LABELS[label], mode: "markers", hoverinfo: "text",
      text: dots.map((dot) => format(values[dot])),
      marker: {
        symbol: SYMBOLS[label], size: 8, color: dots.map((dot) => values[dot]), colorscale: "Viridis",
        cmin: at(0.02), cmax: at(0.98), line: { width: 0.5, color: "#444" }, showscale: first,
        colorbar: { title: { text: state.by === "g" ? "a_G" : "a_prop" }, thickness: 12 },
      },
    });
    first = false;
  }
  const rings = traces.length;
  traces.push({
    x: [], y: [], name: "neighbours", mode: "markers", hoverinfo: "skip", showlegend: false,
    marker: { symbol: "circle-open", size: 16, color: "#d62728", line: { width: 2 } },
  });
  const bare = { visible: false };
  Plotly.react("space", traces, {
    margin: { l: 4, r: 4, t: 8, b: 4 }, xaxis: bare, yaxis: bare, hovermode: "closest",
    legend: { orientation: "h", y: 0, yanchor: "top" }, dragmode: "pan",
  }, { responsive: true, displayModeBar: false, scrollZoom: true });
  const plot = get("space");
  plot.removeAllListeners("plotly_hover");
  plot.removeAllListeners("plotly_click");
  plot.on("plotly_hover", (event) => {
    const near = show(event.points[0].customdata);
    Plotly.restyle(plot, {
      x: [near.map((dot) => section.x[dot])], y: [near.map((dot) => section.y[dot])],
    }, [rings]);
  });
  plot.on("plotly_click", (event) => {
    const dot = event.points[0].customdata;
    show(dot);
    play(machine.clips[section.clip[dot]], section.start[dot], null);
  });
}

function fill(select, names) {
  select.replaceChildren();
  names.forEach((name, number) => { make("option", name, select).value = number; });
}

function choose(machine) {
  state.machine = machine;
  state.section = data.machines[machine].first;
  fill(get("section"), data.machines[machine].sections.map((section) => section.name));
  get("section").value = state.section;
}

if (get("space")) {
  fill(get("machine"), data.machines.map((machine) => machine.name));
  choose(data.machines.findIndex((machine) => machine.sections.length));
  get("machine").value = state.machine;
  get("machine").addEventListener("change", (event) => { choose(Number(event.target.value)); draw(); });
  get("section").addEventListener("change", (event) => {
    state.section = Number(event.target.value);
    draw();
  });
  get("choose").addEventListener("change", (event) => {
    if (event.target.name === "by") { state.by = event.target.value; draw(); }
  });
  draw();
}
document.body.dataset.ready = "yes";
