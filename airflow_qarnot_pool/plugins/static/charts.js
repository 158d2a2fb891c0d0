/* Pictures, as SVG made here. The geometry is pure: from series of points to paths. Behind each picture is a table. */

import { h } from "./dom.js";
import { duration, mark, offset, plural, some, stamp } from "./format.js";

const MARGIN = { left: 46, right: 18, top: 8, bottom: 20 };
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];

/* A linear scale from [a, b] to [p, q]. */
const scale = (a, b, p, q) => (value) => p + ((value - a) / (b - a || 1)) * (q - p);
/* The part of a picture that has no text. */
const plot = (height) => ({ y: MARGIN.top, height: height - MARGIN.top - MARGIN.bottom });
const short = (value) => String(Math.round(value * 10) / 10);

/* Marks of a time axis: whole steps in the user's zone, about one per 80 px. */
function timeMarks(from, until, width) {
  const step = STEPS.find((each) => (until - from) / each <= Math.max(2, width / 80)) || STEPS[STEPS.length - 1];
  const shift = offset(from);
  const marks = [];
  for (let t = Math.ceil((from + shift) / step) * step - shift; t <= until && marks.length < 50; t += step) marks.push(t);
  return { step, marks };
}

/* The round number at or above *value*, and how far its marks are apart. */
function niceTop(value, isWhole) {
  const top = value > 0 ? value : 1;
  const power = 10 ** Math.floor(Math.log10(top / 4));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= top / 4 - 1e-12);
  const whole = isWhole ? Math.max(1, step) : step;
  return { top: Math.ceil(top / whole - 1e-9) * whole, step: whole };
}

/* Pieces of *points* between *gaps*. A step holds up to the next point, so it ends where a gap begins. */
function pieces(points, gaps, until, isStep) {
  const found = [];
  let piece = [];
  points.forEach((point, i) => {
    piece.push(point);
    const next = points[i + 1] ? points[i + 1][0] : until;
    const gap = gaps.find(([from, to]) => from < next && to > point[0]);
    if (!gap && points[i + 1]) return;
    if (isStep) piece.push([gap ? Math.max(gap[0], point[0]) : Math.max(until, point[0]), point[1]]);
    found.push(piece);
    piece = [];
  });
  return found;
}

function pathOf(piece, x, y, isStep) {
  return piece.map(([t, value], i) => {
    if (!i) return `M${short(x(t))} ${short(y(value))}`;
    return isStep ? `H${short(x(t))}V${short(y(value))}` : `L${short(x(t))} ${short(y(value))}`;
  }).join("");
}

/* Only what is in [from, until], with the value at its start. */
function cropped(points, from, until) {
  const inside = points.filter(([t]) => t >= from && t <= until);
  const before = points.filter(([t]) => t < from).pop();
  return before ? [[from, before[1]], ...inside] : inside;
}

function timeAxis({ from, until, width, height }, x) {
  const { step, marks } = timeMarks(from, until, width - MARGIN.left - MARGIN.right);
  return marks.map((t) => h("g", { key: `t${t}` },
    h("line", { class: "grid", x1: short(x(t)), x2: short(x(t)), y1: MARGIN.top, y2: height - MARGIN.bottom }),
    h("text", { class: "tick", x: short(x(t)), y: height - 6, "text-anchor": "middle" }, mark(t, step))));
}

/* A picture with its title, legend, tip and table.
   `table` is {head, rows}, whose rows are made only once it is open. */
function figure({ key, title, note, legend, controls, summary, width, height, tables, table, drag }, content) {
  return h("figure", { key, class: "picture", "data-picture": key },
    h("figcaption", {}, h("strong", {}, title), note ? h("span", { class: "quiet" }, ` ${note}`) : null,
      h("span", { class: "legend" }, (legend || []).map(([name, kind]) => h("span", { key: name, class: `key ${kind}` }, name))), controls),
    h("div", { class: "canvas" },
      h("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": summary, "data-drag": drag ? "zoom" : null }, content,
        h("line", { key: "cross", class: "cross", y1: MARGIN.top, y2: height - MARGIN.bottom }),
        h("rect", { key: "range", class: "range", ...plot(height) })),
      h("output", { class: "tip", "aria-hidden": "true", opaque: true })),
    tableOf(key, table, tables));
}

function tableOf(key, { head, rows, note }, tables) {
  return h("details", { class: "behind", "data-table": key }, h("summary", {}, "Table"),
    tables.has(key) ? h("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Table of the picture" }, note ? h("p", { class: "quiet" }, note) : null, h("table", {},
      h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows().map((cells) => h("tr", {}, cells.map((text, i) => (i ? h("td", {}, text) : h("th", { scope: "row" }, text)))))))) : null);
}

/* Series over time, up to *end*. *series* is [{name, kind, points: [[t, value]], step, area, gaps}], *gaps* those of all of them. */
export function lines(spec) {
  const { series, from, until, end = until, gaps = [], width, height, isWhole, format = some } = spec;
  const x = scale(from, until, MARGIN.left, width - MARGIN.right);
  const shown = series.map((one) => ({ ...one, points: cropped(one.points, from, until) }));
  const { top, step } = niceTop(Math.max(0, ...shown.flatMap((one) => one.points.map((point) => point[1]))), isWhole);
  const y = scale(0, top, height - MARGIN.bottom, MARGIN.top);
  const marks = [];
  for (let value = 0; value <= top + step / 2; value += step) marks.push(value);
  const inSight = gaps.filter(([a, b]) => b > from && a < until).map(([a, b]) => [Math.max(a, from), Math.min(b, until)]);
  const content = [
    inSight.map(([a, b]) => h("rect", { key: `gap${a}`, class: "gap", x: short(x(a)), width: short(Math.max(1, x(b) - x(a))), ...plot(height) })),
    timeAxis(spec, x),
    marks.map((value) => h("g", { key: `v${value}` },
      h("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: short(y(value)), y2: short(y(value)) }),
      h("text", { class: "tick", x: MARGIN.left - 6, y: short(y(value) + 4), "text-anchor": "end" }, format(value)))),
    shown.map((one) => {
      const parts = pieces(one.points, one.gaps || inSight, Math.min(until, end), one.step);
      const path = parts.map((piece) => pathOf(piece, x, y, one.step)).join("");
      const base = short(y(0));
      const area = parts.map((piece) => `${pathOf(piece, x, y, one.step)}V${base}H${short(x(piece[0][0]))}Z`).join("");
      return h("g", { key: one.name, class: `series ${one.kind}` }, one.area ? h("path", { class: "area", d: area }) : null, h("path", { class: "stroke", d: path }));
    }),
  ];
  return figure({
    ...spec,
    legend: spec.legend || (series.length > 1 ? series.map((one) => [one.name, one.kind]) : []),
    drag: true,
    table: { head: ["Time", ...series.map((one) => one.name)], rows: () => tableRows(series, format, gaps) },
  }, content);
}

/* Rows by time: the values, and the gaps. */
function tableRows(series, format, gaps) {
  const times = [...new Set(series.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
  const values = series.map((one) => new Map(one.points));
  const known = times.map((t) => [t, stamp(t), ...values.map((each) => (each.has(t) ? format(each.get(t)) : ""))]);
  const isIn = (one, from) => (one.gaps || gaps).some(([a]) => a === from);
  const holes = gaps.map(([a, b]) => [a, `${stamp(a)} – ${stamp(b)}`, ...series.map((one) => (isIn(one, a) ? "not observed" : ""))]);
  return [...known, ...holes].sort((x, y) => x[0] - y[0]).map(([, ...cells]) => cells);
}

/* What the tip of a picture of lines says at *t*. */
export function readLines({ series, end = Infinity, gaps = [], format = some }, t) {
  if (t > end) return [stamp(t)];
  const at = (points) => { let found = null; for (const point of points) { if (point[0] > t) break; found = point; } return found; };
  const isGap = (one) => (one.gaps || gaps).some(([a, b]) => t > a && t < b);
  const text = (one) => { const point = at(one.points); return isGap(one) ? "not observed" : point ? format(point[1]) : null; };
  return [stamp(t), ...series.map((one) => [one.name, text(one)]).filter(([, value]) => value !== null).map(([name, value]) => `${name}: ${value}`)];
}

// ---- Gantt of Qarnot tasks

const LANE = 14;
const MAX_LANES = 60;

/* Bars by time in lanes, which are the slots of the nodes. *spec* is {gantt, from, until, width, colour: "state" | "task"}. */
export function gantt(spec) {
  const { gantt: data, from, until, width } = spec;
  const lanes = lanesOf(data);
  const pitch = lanes > MAX_LANES ? (LANE * MAX_LANES) / lanes : LANE;
  const height = MARGIN.top + MARGIN.bottom + Math.max(LANE, lanes * pitch);
  const x = scale(from, until, MARGIN.left, width - MARGIN.right);
  const edge = short(MARGIN.top + data.lanes * pitch);
  const paths = new Map();
  const colours = coloursOf(data, spec.colour);
  for (const bar of data.bars) {
    const [lane, start, end, state, task] = bar;
    const last = end === null ? spec.now : end;
    if (last < from || start > until) continue;
    const [a, b] = [x(Math.max(start, from)), x(Math.min(last, until))];
    const top = MARGIN.top + lane * pitch;
    const kind = `${colours(state, task)}${bar[6] ? "" : " inexact"}`;
    const box = `M${short(a)} ${short(top + pitch * 0.1)}h${short(Math.max(1, b - a - (b - a > 4 ? 1 : 0)))}v${short(pitch * 0.8)}H${short(a)}Z`;
    paths.set(kind, (paths.get(kind) || "") + box);
  }
  const tall = pitch * data.slots_per_node;
  const content = [
    Array.from({ length: Math.floor(data.nodes / 2) }, (_, i) => h("rect", { key: `band${i}`, class: "band", x: MARGIN.left,
      width: width - MARGIN.left - MARGIN.right, y: short(MARGIN.top + (2 * i + 1) * tall), height: short(tall) })),
    timeAxis({ ...spec, height }, x),
    data.lanes && lanes > data.lanes ? h("line", { key: "edge", class: "edge", x1: MARGIN.left, x2: width - MARGIN.right, y1: edge, y2: edge }) : null,
    nodeMarks(data.nodes, tall).map((node) => h("text",
      { key: `node${node}`, class: "tick", x: MARGIN.left - 6, y: short(MARGIN.top + (node + 0.5) * tall + 4), "text-anchor": "end" },
      data.nodes < 100 ? `node ${node + 1}` : String(node + 1))),
    [...paths].map(([kind, d]) => h("path", { key: kind, class: `bars ${kind}`, d })),
  ];
  return figure({
    ...spec,
    height,
    legend: legendOf(data, spec.colour),
    drag: true,
    table: { head: ["Qarnot task", "Drawn", "State", "Start", "End"], rows: () => ganttRows(data), note: cutNote(data) },
  }, content);
}

const lanesOf = (data) => data.bars.reduce((most, bar) => Math.max(most, bar[0] + 1), data.lanes || 1);
/* The nodes that have a mark, each of which needs 14 px. */
const nodeMarks = (nodes, tall) => Array.from({ length: nodes }, (_, node) => node).filter((node) => node % Math.max(1, Math.ceil(LANE / tall)) === 0);

/* Where a bar is drawn: on a node, and its slot if it has several. Times have whole seconds, so there may seem to be more
   instances at once than slots. */
function placeOf({ nodes, slots_per_node: slots }, lane) {
  if (lane >= nodes * slots) return "below the nodes";
  return `on node ${Math.floor(lane / slots) + 1}${slots > 1 ? `, slot ${(lane % slots) + 1}` : ""}`;
}

const STATE_KIND = { running: "busy", succeeded: "good", failed: "bad", cancelled: "off" };
const HUES = 8;
const airflowTask = (task) => (task && task.task_id) || "no Airflow task";
const airflowTasks = (data) => [...new Set(data.tasks.map(airflowTask))].sort();

function coloursOf(data, colour) {
  if (colour !== "task") return (state) => STATE_KIND[state] || "off";
  const order = new Map(airflowTasks(data).map((name, i) => [name, `hue${i % HUES}`]));
  return (state, task) => order.get(airflowTask(data.tasks[task])) || "off";
}

function legendOf(data, colour) {
  if (colour === "task") return airflowTasks(data).slice(0, 12).map((name, i) => [name, `hue${i % HUES}`]);
  const states = new Set(data.bars.map((bar) => bar[3]));
  return Object.entries(STATE_KIND).filter(([state]) => states.has(state));
}

function nameOf(task) {
  if (!task) return "?";
  if (!task.task_id) return task.name;
  return task.map_index === null ? task.task_id : `${task.task_id} [${task.map_index}]`;
}

const MAX_ROWS = 500;
const cutNote = ({ bars, total }) => (bars.length > MAX_ROWS ? `The ${MAX_ROWS} instances that started last, of ${plural(Math.max(total, bars.length), "instance")}.` : null);

function ganttRows(data) {
  return [...data.bars].sort((a, b) => b[1] - a[1]).slice(0, MAX_ROWS).map(([lane, start, end, state, task, instance, exact]) =>
    [`${nameOf(data.tasks[task])}${instance ? ` #${instance}` : ""}`, placeOf(data, lane), exact ? state : `${state} (times of the whole task)`,
      stamp(start), end === null ? "" : stamp(end)]);
}

/* The bar at a time and a height of the picture, or null. */
export function barAt({ gantt: data, now }, t, y) {
  const lanes = lanesOf(data);
  const pitch = lanes > MAX_LANES ? (LANE * MAX_LANES) / lanes : LANE;
  const lane = Math.floor((y - MARGIN.top) / pitch);
  return data.bars.find((bar) => bar[0] === lane && bar[1] <= t && (bar[2] === null ? now : bar[2]) >= t) || null;
}

export function readGantt(spec, t, y) {
  const bar = barAt(spec, t, y);
  if (!bar) return [stamp(t)];
  const [lane, start, end, state, index, instance, exact] = bar;
  const task = spec.gantt.tasks[index];
  const waited = exact && task && task.created ? start - Date.parse(task.created) / 1000 : 0;
  return [`${nameOf(task)}${instance ? ` #${instance}` : ""}: ${state}`, `${stamp(start)} – ${end === null ? "now" : `${stamp(end)}, ${duration(end - start)}`}`,
    waited >= 1 ? `after ${duration(waited)} in the queue` : null, exact ? `drawn ${placeOf(spec.gantt, lane)}` : "times of the whole Qarnot task"].filter(Boolean);
}

// ---- boot phases

/* Phases of the boot as one bar. *phases* is [{phase, at, seconds}], each with the seconds since the one before. */
export function boot({ key, title, phases, width, tables, format }) {
  const height = 40;
  const total = phases.reduce((sum, phase) => sum + (phase.seconds || 0), 0);
  const x = scale(0, total, 0, width);
  let at = 0;
  const content = phases.map((phase, i) => {
    const [a, b] = [x(at), x(at + (phase.seconds || 0))];
    at += phase.seconds || 0;
    return b - a < 0.5 ? null : h("g", { key: phase.phase },
      h("rect", { class: `phase hue${i % HUES}`, x: short(a), y: 4, width: short(Math.max(1, b - a - 1)), height: 14 }),
      b - a > 70 ? h("text", { class: "tick", x: short(a), y: 32 }, `${phase.phase} ${format(phase.seconds)}`) : null);
  });
  return figure({
    key, title, width, height, tables,
    note: phases.length ? `${plural(phases.length, "phase")}, ${format(total)} in all` : "",
    summary: phases.map((phase) => `${phase.phase} after ${format(phase.seconds)}`).join(", "),
    table: {
      head: ["Phase", "Time", "After"],
      rows: () => phases.map((phase) => [phase.phase, phase.at ? stamp(Date.parse(phase.at) / 1000) : "", format(phase.seconds)]),
    },
  }, content);
}

// ---- sizes of a pool

/* Euros against makespan of each size. *points* is [[size, seconds, euros]], and two sizes are marked. */
export function sizes({ key, title, points, chosen, recorded, width, height, tables, format, note }) {
  const seconds = points.map((point) => point[1]);
  const ends = [Math.min(...seconds), Math.max(...seconds)];
  const x = scale(...ends, MARGIN.left + 10, width - MARGIN.right - 20);
  const { top, step } = niceTop(Math.max(...points.map((point) => point[2])), false);
  const y = scale(0, top, height - MARGIN.bottom, MARGIN.top);
  const marks = Array.from({ length: Math.round(top / step) + 1 }, (_, i) => i * step);
  const kindOf = (size) => (size === chosen ? "good" : size === recorded ? "busy" : "off");
  const content = [
    marks.map((value) => h("g", { key: `v${value}` },
      h("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: short(y(value)), y2: short(y(value)) }),
      h("text", { class: "tick", x: MARGIN.left - 6, y: short(y(value) + 4), "text-anchor": "end" }, format(value)))),
    [...new Set(ends)].map((end) => h("text", { key: `t${end}`, class: "tick", x: short(x(end)), y: height - 6, "text-anchor": "middle" }, duration(end))),
    points.map(([size, time, cost]) => h("g", { key: `s${size}`, class: `size ${kindOf(size)}` },
      h("circle", { cx: short(x(time)), cy: short(y(cost)), r: kindOf(size) === "off" ? 3 : 5 }),
      kindOf(size) === "off" ? null : h("text", { class: "tick", x: short(x(time) + 8), y: short(y(cost) + 4) }, String(size)))),
  ];
  const markOf = (size) => [size === chosen ? "cheapest within the tolerance" : "", size === recorded ? "this pool" : ""].filter(Boolean).join(", ");
  return figure({
    key, title, width, height, tables, note,
    legend: [["chosen", "good"], ...(chosen === recorded ? [] : [["this pool", "busy"]]), ["other sizes", "off"]],
    summary: points.filter(([size]) => markOf(size)).map(([size, time, cost]) => `${plural(size, "slot")}, ${markOf(size)}: ${duration(time)}, ${format(cost)}`).join("; "),
    table: {
      head: ["Slots", "Makespan", "Cost", ""],
      rows: () => points.map(([size, time, cost]) => [String(size), duration(time), format(cost), markOf(size)]),
    },
  }, content);
}

/* The time at a place of a picture, whose width on the screen is *wide*. */
export function timeAt({ from, until, width }, place, wide) {
  const t = from + ((place * (width / wide) - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * (until - from);
  return Math.min(until, Math.max(from, t));
}
