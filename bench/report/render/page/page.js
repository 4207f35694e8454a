"use strict";
// Draws what bench.report.page_plots describes; redraws on a choice, on a change of colours, and for print.

const root = document.documentElement;
const data = JSON.parse(document.getElementById("data").textContent);
const figures = [...document.querySelectorAll("figure")];
const drawn = new Set();
const choices = new Map();  // op → what its controls say
const said = new Map();     // plot → the texts of its curves
const SYMBOLS = {
  circle: "●", square: "■", diamond: "◆", "triangle-down": "▼", "triangle-up": "▲", cross: "✚", x: "✖",
};
const DASHES = ["solid", "dash", "dot"];
const COLORS = 7;
const UNITS = {
  duration: { tickformat: "~s", ticksuffix: "s" }, ratio: { ticksuffix: "x" }, share: { tickformat: ".0%" }, number: {},
};
const LATENCY = { title: "time", unit: "duration" }, MEMORY = { title: "MiB", unit: "number" };
const AXES = { latency: LATENCY, speedup: { title: "speed-up", unit: "ratio" }, memory: MEMORY,
  share: { title: "share of the ceiling", unit: "share" } };
const SECONDS = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]];
const LABELS = {  // of a logarithmic axis' ticks, for Plotly's own drop the unit
  duration: (value) => {
    const [size, unit] = SECONDS.find(([least]) => value > 0.99 * least) ?? SECONDS.at(-1);
    return `${+(value / size).toPrecision(2)} ${unit}`;
  },
  ratio: (value) => `${+value.toPrecision(2)}x`, number: (value) => `${+value.toPrecision(2)}`,
};
const PRINTED_PX = 640;
const LEAST_SPAN = 8;  // a logarithmic axis shows at least this ratio, or noise in a flat curve would look like a cliff

const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
// Plotly reads a little HTML in its texts; names are shown as they are.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\n/g, "<br>");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function look(slot) {
  const names = Object.keys(SYMBOLS);
  return {
    color: slot ? `series-${(slot - 1) % COLORS + 1}` : "ink",
    symbol: names[(slot + Math.floor(slot / COLORS)) % names.length],
    dash: DASHES[Math.floor(Math.max(slot - 1, 0) / COLORS) % DASHES.length],
  };
}

function trace(curve, slot) {
  const { color: name, symbol, dash } = look(slot);
  const beyond = (ends, sign) => curve.y.map((y, i) => (ends[i] == null ? 0 : sign * (ends[i] - y)));
  return {
    type: "scatter", mode: curve.line === false ? "markers" : "lines+markers", name: plain(curve.name),
    x: curve.x, y: curve.y, hovertext: curve.text.map(plain), hoverinfo: "text",
    line: { color: color(name), dash, width: 2 }, marker: { color: color(name), symbol, size: 8 },
    ...(curve.low?.length && {
      error_y: { type: "data", symmetric: false, array: beyond(curve.high, 1), arrayminus: beyond(curve.low, -1),
        thickness: 1, width: 3 },
    }),
  };
}

function ticks(low, high, label) {
  const decades = Math.log10(high / low), steps = decades > 5 ? [1] : decades > 3 ? [1, 3] : [1, 2, 5];
  const powers = Array.from({ length: Math.ceil(decades) + 2 }, (_, i) => Math.floor(Math.log10(low)) + i);
  const tickvals = powers.flatMap((power) => steps.map((step) => step * 10 ** power))
    .filter((value) => value >= low && value <= high);
  return { tickvals, ticktext: tickvals.map(label) };
}

function axis({ title, unit, log }, values) {
  const known = values.filter((value) => value > 0);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const widen = Math.max(1.15, Math.sqrt(LEAST_SPAN * low / high));
  const range = [low / widen, high * widen];
  return {
    title: { text: plain(title) }, type: log ? "log" : "linear", rangemode: "tozero", automargin: true,
    gridcolor: color("line"), linecolor: color("line"), zeroline: false, ...UNITS[unit],
    ...(log && known.length && { range: range.map(Math.log10), ...ticks(...range, LABELS[unit]) }),
  };
}

function batchAxis(spec, values, width) {
  const made = axis({ ...spec, unit: "number" }, values);
  if (!spec.log || !values.length) return made;
  const apart = (Math.max(...values) / Math.min(...values)) ** (40 / width);  // nearer labels would meet
  let last = 0;
  const batches = [...new Set(values)].sort((a, b) => a - b).filter((batch) => batch >= apart * last && (last = batch));
  return { ...made, tickvals: batches, ticktext: batches.map((batch) => batch.toLocaleString("en")) };
}

// The plot of one of an op's quantities, as page_plots describes those of training.
function plotOf(figure) {
  const section = figure.closest("[data-op]");
  if (!section) return data.plots[figure.dataset.plot];
  const { quantity } = figure.dataset;
  const { problem, batch, logBatch, logValue, hidden } = choices.get(section.dataset.op);
  const { curves, batches, floor } = data.ops[section.dataset.op].problems[problem];
  const { variants } = data.ops[section.dataset.op];
  const isLatency = quantity === "latency";
  const series = curves.filter((curve) => !hidden.has(curve.name)).map((curve) => ({
    name: curve.name, slot: variants.indexOf(curve.name), x: curve.batch, y: curve[quantity], text: curve.text,
    ...(isLatency && { low: curve.low, high: curve.high, law: curve.law }),
  }));
  return {
    x: { title: "batch", log: logBatch }, series, marks: batch ? [{ x: batch, low: batch, high: batch, text: `B = ${batch}` }] : [],
    floor: isLatency && { x: batches, y: floor },
    y: { ...AXES[quantity], log: logValue && (isLatency || quantity === "memory") }, legend: false,
  };
}

function draw(figure) {
  const plot = plotOf(figure), box = figure.querySelector(".plot");
  const printing = root.classList.contains("printing"), width = printing ? PRINTED_PX : box.clientWidth;
  const traces = plot.series.map((curve, i) => trace(curve, curve.slot ?? i + 1));
  plot.series.forEach(({ law, slot }) => {
    if (!law) return;
    traces.push({ type: "scatter", mode: "lines", ...law, hoverinfo: "skip", line: { color: color(look(slot).color), width: 1 } });
  });
  if (plot.floor) {
    traces.push({ type: "scatter", mode: "lines", ...plot.floor, hoverinfo: "skip", line: { color: color("muted"),
      dash: "dot", width: 1.5 }, name: "the least that the ceilings allow" });
  }
  const all = (key) => plot.series.flatMap((curve) => [...curve[key] ?? []]).filter((value) => value != null);
  const ink = color("ink");
  Plotly.react(box, traces, {
    autosize: !printing, ...(printing && { width }), height: box.clientHeight, paper_bgcolor: color("paper"),
    plot_bgcolor: color("paper"), margin: { l: 16, r: 8, t: plot.marks.length ? 24 : 12, b: 16 },
    font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: 12 },
    xaxis: batchAxis(plot.x, all("x"), width), hovermode: "closest",
    yaxis: axis(plot.y, [...all("y"), ...all("low"), ...all("high"), ...(plot.floor ? plot.floor.y : [])]),
    hoverlabel: { align: "left", bgcolor: color("raised"), bordercolor: ink, font: { color: ink } },
    showlegend: plot.legend !== false && plot.series.length > 1, legend: { orientation: "h", y: -0.22 },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    shapes: plot.marks.flatMap(({ x, low, high }) => [
      { x0: x, x1: x, line: { color: ink, width: 1 } },
      { x0: low, x1: high, fillcolor: ink, opacity: 0.12, line: { width: 0 } },
    ]).map((shape) => ({ type: "rect", yref: "paper", y0: 0, y1: 1, ...shape })),
    annotations: plot.marks.map(({ x, text }) => ({
      x: plot.x.log ? Math.log10(x) : x, yref: "paper", y: 1, text: plain(text), showarrow: false, yanchor: "bottom",
      xanchor: x ** 2 > Math.min(...all("x")) * Math.max(...all("x")) ? "right" : "left",
    })),
  }, { displayModeBar: false, responsive: true });
  said.set(box, plot.series.map((curve) => curve.text));
  drawn.add(figure);
}

function choose(section) {
  const choice = choices.get(section.dataset.op);
  for (const part of section.querySelectorAll("[data-problem]")) part.hidden = part.dataset.problem !== choice.problem;
  for (const figure of section.querySelectorAll("figure")) if (drawn.has(figure)) draw(figure);
}

function control(section) {
  const parts = [...section.querySelectorAll("[data-problem]")].map((part) => part.dataset);
  const choice = { problem: parts[0].problem, batch: null, logBatch: true, logValue: true, hidden: new Set() };
  const changed = () => choose(section);
  choices.set(section.dataset.op, choice);
  const unique = (key) => [...new Set(parts.map((part) => part[key]))];
  const select = (key) => element("select", { name: key }, ...unique(key).map((name) => new Option(name, name)));
  const scenario = select("scenario"), dtype = select("dtype");
  scenario.onchange = dtype.onchange = () => {
    const here = parts.filter((part) => part.scenario === scenario.value);
    for (const option of dtype.options) option.disabled = !here.some((part) => part.dtype === option.value);
    const chosen = here.find((part) => part.dtype === dtype.value) ?? here[0];
    dtype.value = chosen.dtype;
    choice.problem = chosen.problem;
    choice.batch = null;
    changed();
  };
  choice.open = (part, batch) => {
    scenario.value = part.scenario;
    dtype.value = part.dtype;
    scenario.onchange();
    choice.batch = batch;
    changed();
  };
  const check = (label, checked, turned) => element("label", {},
    element("input", { type: "checkbox", checked, onchange: (event) => { turned(event.target.checked); changed(); } }),
    ...label);
  const variants = data.ops[section.dataset.op].variants.map((name, slot) => {
    const { color: its, symbol } = look(slot);
    const swatch = element("span", { className: "swatch", ariaHidden: "true" }, SYMBOLS[symbol]);
    swatch.style.color = `var(--${its})`;
    return check([swatch, name], true, (on) => choice.hidden[on ? "delete" : "add"](name));
  });
  const form = section.querySelector("form");
  form.append(
    element("label", { className: "choice" }, "Scenario", scenario),
    element("label", { className: "choice", hidden: dtype.length < 2 }, "Data type", dtype),
    element("fieldset", {}, element("legend", {}, "Logarithmic"),
      check(["batch"], true, (on) => { choice.logBatch = on; }),
      check(["latency and memory"], true, (on) => { choice.logValue = on; })),
    element("fieldset", {}, element("legend", {}, "Variants"), ...variants));
  form.hidden = false;
  form.onsubmit = (event) => event.preventDefault();
  scenario.onchange();
}

// What the address names, `#bmm/tiny_16/float32/B64`: its plots with that batch marked, and its figures.
function follow() {
  const target = document.getElementById(location.hash.slice(1));
  const part = target?.closest("[data-problem]"), section = target?.closest("[data-op]");
  if (!part || !section) return;
  choices.get(section.dataset.op).open(part.dataset, Number(/\/B(\d+)$/.exec(target.id)?.[1]) || null);
  target.closest("details").open = true;
  const heading = section.querySelector("h2");
  heading.scrollIntoView();
  heading.focus({ preventScroll: true });
}

// Which rows of the map are shown: those that have every word, and the chosen op, dtype and family.
function filter(form) {
  const rows = [...form.parentElement.querySelectorAll("tbody tr")];
  const values = (key) => [...new Set(rows.flatMap((row) => row.dataset[key].split("|")).filter(Boolean))];
  const select = (key, all) => element("select", { name: key }, new Option(all, ""),
    ...values(key).map((name) => new Option(name, name)));
  const text = element("input", { type: "search", placeholder: "tiny numba" });
  const chosen = { mapOp: select("mapOp", "all"), mapDtype: select("mapDtype", "all"), mapFamilies: select("mapFamilies", "any") };
  const count = element("output");
  const fits = (row) => text.value.toLowerCase().split(/\s+/).every((word) => row.dataset.mapText.toLowerCase().includes(word))
    && Object.entries(chosen).every(([key, { value }]) => !value || row.dataset[key].split("|").includes(value));
  const show = () => {
    for (const row of rows) row.hidden = !fits(row);
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} problems`;
  };
  const labelled = (name, control) => element("label", { hidden: control.options?.length < 3 }, name, control);
  form.append(labelled("Search", text), labelled("Op", chosen.mapOp), labelled("Dtype", chosen.mapDtype),
    labelled("Won by", chosen.mapFamilies), count);
  form.oninput = show;
  form.onsubmit = (event) => event.preventDefault();
  form.hidden = false;
  show();
}

// Arrow keys go along a curve and between curves, and say the point.
function readPoints(box) {
  let curve = 0, point = -1;
  box.onkeydown = (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const curves = said.get(box) ?? [];
    if (!steps || !curves.length) return;
    event.preventDefault();
    curve = (curve + steps[0] + curves.length) % curves.length;
    point = Math.min(Math.max(point + steps[1], 0), curves[curve].length - 1);
    Plotly.Fx.hover(box, [{ curveNumber: curve, pointNumber: point }]);
    document.getElementById("said").textContent = curves[curve][point].replace(/\n/g, ", ");
  };
}

async function start() {
  const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(element("script", { textContent: await new Response(stream).text() }));
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { seen.unobserve(target); draw(target); }
    }
  }, { rootMargin: "600px" });
  for (const figure of figures) {
    readPoints(figure.querySelector(".plot"));
    seen.observe(figure);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    document.querySelectorAll("details.figures").forEach((part) => { part.open = true; });
    figures.forEach(draw);
  });
  addEventListener("afterprint", () => { root.classList.remove("printing"); drawn.forEach(draw); });
}

document.querySelectorAll("section[data-op]").forEach(control);
document.querySelectorAll("form.filter").forEach(filter);
addEventListener("hashchange", follow);
addEventListener("load", follow);
start().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.textContent = `The plots can't be drawn in this browser (${error}). Every figure of theirs is in the tables.`;
  trouble.hidden = false;
});
