/* Which pictures there are of a pool, and of the account's last day, from the numbers of the server. */

import * as charts from "./charts.js";
import { h } from "./dom.js";
import { duration, euros, plural, stamp, whole } from "./format.js";
import { isEnded } from "./rows.js";
import { to } from "./state.js";

const HEIGHT = 170;
/* Qarnot's bill grows in steps, so a shorter time in which it stays the same is no pause. */
const BILL_SECONDS = 300;

/* As pools.css lays them out. The width of the window counts there, and not that of the page in it. */
const isNarrow = matchMedia("(max-width: 899px)");
const halfOf = (width) => (isNarrow.matches ? width : Math.floor((width - 16) / 2));
const column = (points, i) => points.map((point) => [point[0], point[i]]).filter((point) => point[1] !== null);
const step = (name, kind, points, more = {}) => ({ name, kind, step: true, points, ...more });

// ---- a pool

/* The pictures of a pool. *state* is {detail, view, now, width, tables, reader}, and *reader* is told how to read each. */
export function poolPictures(state) {
  const { detail, view, width, tables, reader } = state;
  const { pictures } = detail;
  const range = rangeOf(pictures, view, state.now);
  const common = { from: range.from, until: range.until, end: range.end, tables, width: halfOf(width), height: HEIGHT };
  const specs = [...slotSpecs(detail, common), ...costSpecs(detail, common)];
  const hasBars = pictures.gantt.bars.length > 0;
  if (!specs.length && !hasBars) return [];
  return [
    h("h2", { key: "over time" }, "Over time"),
    controls(view, range),
    h("div", { key: "pictures", class: "pictures" }, specs.map((spec) => drawn(spec, charts.lines, charts.readLines, reader)), bootPicture(detail, common), sizesPicture(detail, common)),
    hasBars ? drawn(ganttSpec(detail, { ...common, width }, view), charts.gantt, charts.readGantt, reader) : null,
  ];
}

function drawn(spec, draw, read, reader) {
  reader.set(spec.key, { spec, read });
  return draw(spec);
}

/* The marks before and after now: the pictures of an open pool end at the one after. So time alone draws them anew only
   now and then. */
export function marksAround(from, now) {
  const length = Math.max(60, 2 ** Math.ceil(Math.log2(Math.max(1, (now - from) / 60))));
  const before = from + Math.floor((now - from) / length) * length;
  return [before, before + length];
}

/* {from, until, first, last, isZoom, end}: what is shown, all that there is, and the last moment that is known. */
function rangeOf(pictures, view, now) {
  const [before, after] = marksAround(pictures.from, now);
  const first = pictures.from;
  const last = Math.max(pictures.until === null ? after : pictures.until, first + 1);
  const newest = [pictures.slots, pictures.work].flatMap(({ points }) => points.slice(-1)).map(([t]) => t);
  const end = pictures.until === null ? Math.max(before, ...newest) : last;
  const [a, b] = (view.zoom || "").split("-").map(Number);
  const isZoom = isFinite(a) && isFinite(b) && b > a && a < last && b > first;
  return { from: isZoom ? Math.max(first, a) : first, until: isZoom ? Math.min(last, b) : last, first, last, isZoom, end };
}

function slotSpecs({ row, pictures: { slots, work } }, common) {
  const note = slots.cut || work.cut ? "the older half is thinned" : "";
  const series = [
    step("wanted", "off dashed", column(slots.points, 1), { gaps: slots.gaps }),
    step("ready", "good", column(slots.points, 2), { gaps: slots.gaps }),
    step("busy", "busy", column(work.points, 1), { gaps: [], area: true }),
  ].filter((one) => one.points.length);
  const base = { ...common, isWhole: true, note };
  const specs = [];
  if (series.length) {
    const summary = `Slots over time, now ${row.ready} ready of ${row.wanted} wanted, ${row.busy} busy`;
    specs.push({ ...base, key: "slots", title: "Slots", gaps: slots.gaps, series, summary });
  }
  if (work.points.length) {
    const queued = step("queued", "wait", column(work.points, 2), { area: true });
    specs.push({ ...base, key: "queue", title: "Queue", series: [queued], summary: `Queue over time, now ${row.queued}` });
  }
  return specs;
}

function costSpecs({ row, pictures: { cost } }, common) {
  const { points } = cost;
  if (!points.length) return [];
  const figures = row.figures || {};
  const note = figures.per_hour && !isEnded(row) ? `${euros(figures.per_hour)} an hour` : "";
  const base = { ...common, format: euros };
  const rate = rates(points);
  return [
    { ...base, key: "cost", title: "Cost so far", note, gaps: cost.gaps, series: [{ name: "euros", kind: "busy", area: true, points }], summary: `Cost over time, now ${euros(figures.euros)}` },
    { ...base, key: "rate", title: "Euros an hour", end: points[points.length - 1][0], gaps: cost.gaps, series: [step("euros an hour", "wait", rate)], summary: "Euros an hour over time" },
  ].filter((spec) => spec.series[0].points.length);
}

/* Euros an hour between two readings of the bill, from the time of the first. */
export function rates(points) {
  const found = [];
  let [start, before] = points[0];
  for (const [t, now] of points.slice(1)) {
    if (now === before && t - start < BILL_SECONDS) continue;
    if (t > start) found.push([start, Math.max(0, ((now - before) / (t - start)) * 3600)]);
    [start, before] = [t, now];
  }
  return found;
}

function ganttSpec({ pictures: { gantt } }, common, view) {
  const isByTask = view.colour === "task";
  const count = plural(gantt.bars.length, "instance");
  const nodes = `${plural(gantt.nodes, "node")}${gantt.slots_per_node > 1 ? ` of ${plural(gantt.slots_per_node, "slot")}` : ""}`;
  return {
    ...common,
    key: "gantt",
    title: "Qarnot tasks by node",
    gantt,
    colour: isByTask ? "task" : "state",
    now: Math.max(common.end, ...gantt.bars.map((bar) => bar[2] ?? bar[1])),
    note: `${gantt.cut ? `the youngest ${whole(gantt.bars.length)} of ${whole(gantt.total)} instances` : count} on ${nodes}, each drawn in the first free slot: Qarnot does not tell which node ran it`,
    controls: h("a", { href: to(view, { colour: isByTask ? "" : "task" }) }, isByTask ? "Colour by state" : "Colour by Airflow task"),
    summary: `${count} of Qarnot tasks on ${nodes} over time`,
  };
}

function bootPicture({ boot }, { tables, width }) {
  const phases = boot.filter((phase) => phase.seconds !== null);
  if (!phases.some((phase) => phase.seconds > 0)) return null;
  return charts.boot({ key: "boot", title: "Boot", phases, tables, width, format: duration });
}

function sizesPicture({ sizes }, { tables, width }) {
  if (!sizes) return null;
  return charts.sizes({ ...sizes, key: "sizes", title: "Cost and makespan by size", note: "from a replay of this run", tables, width, height: HEIGHT, format: euros });
}

function controls(view, { from, until, first, last, isZoom }) {
  const span = until - from;
  const middle = (from + until) / 2;
  /* The address of the time from *a* to *b*, moved into what there is. */
  const at = (a, b) => {
    const start = Math.round(Math.max(first, Math.min(a, last - (b - a))));
    const end = Math.round(Math.min(last, start + (b - a)));
    return to(view, { zoom: start <= first && end >= last ? "" : `${start}-${end}` });
  };
  const link = (text, label, href) => h("a", { class: "turn", key: label, href, "aria-label": label, title: label }, text);
  const moves = isZoom && [
    link("−", "Zoom out", at(middle - span, middle + span)),
    link("←", "Earlier", at(from - span / 2, until - span / 2)),
    link("→", "Later", at(from + span / 2, until + span / 2)),
    link("All", "All of the time", to(view, { zoom: "" })),
  ];
  return h("p", { key: "zoom", class: "zoom" },
    span > 10 ? link("+", "Zoom in", at(middle - span / 4, middle + span / 4)) : null,
    moves,
    h("span", { class: "quiet" }, isZoom ? `${stamp(from)} – ${stamp(until)}` : "Drag over a picture to zoom"));
}

// ---- the last day of the account

/* Pictures of the account. *state* is {history, width, tables, reader}. */
export function dayView({ history, width, tables, reader }) {
  if (!history) return [h("p", { class: "quiet" }, "Asking Qarnot…")];
  const common = { until: Math.ceil(history.now / 600) * 600, end: history.now, width: halfOf(width), height: HEIGHT, tables };
  return history.connections.map((one) => h("section", { key: one.id, "aria-label": one.id },
    history.connections.length > 1 ? h("h2", {}, one.id) : null,
    h("div", { class: "pictures" }, daySpecs(one, common).map((spec) => drawn(spec, charts.lines, charts.readLines, reader)))));
}

/* The start of the pictures: the day, or less if nothing is known of its start. */
function startOf({ from, points, open }, now) {
  const known = [...points.slice(0, 1), ...open.filter(([, count]) => count > 0).slice(0, 1)].map(([t]) => t);
  return Math.max(from, Math.floor((Math.min(now - 3600, ...known) - 300) / 600) * 600);
}

function daySpecs(one, common) {
  const { id, points, gaps, open } = one;
  const base = { ...common, from: startOf(one, common.end), gaps, isWhole: true };
  const cost = column(points, 6);
  const slots = [step("wanted", "off dashed", column(points, 2)), step("ready", "good", column(points, 3)), step("busy", "busy", column(points, 4), { area: true })];
  const specs = [
    { ...base, key: `${id} slots`, title: "Slots of the open pools", series: slots, summary: "Slots of the open pools over the last 24 hours" },
    { ...base, key: `${id} queue`, title: "Queue", series: [step("queued", "wait", column(points, 5), { area: true })], summary: "Queued instances over the last 24 hours" },
    { ...base, key: `${id} open`, title: "Open pools", gaps: [], series: [step("open pools", "good", open, { area: true })], summary: "Number of open pools over the last 24 hours" },
  ];
  if (cost.length) {
    const grown = cost.map(([t, value]) => [t, value - cost[0][1]]);
    const spent = euros(grown[grown.length - 1][1]);
    const series = [{ name: "euros", kind: "busy", area: true, points: grown }];
    specs.push({ ...base, key: `${id} cost`, title: "Cost of the last day", note: `${spent} while it was observed`, gaps: [], isWhole: false, format: euros, series, summary: `Cost of the last 24 hours: ${spent}` });
  }
  return specs.filter((spec) => spec.series.some((series) => series.points.length));
}
