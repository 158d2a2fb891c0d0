/* The Pools page: requests the cached data from its own server, and shows it. It holds the state of the page, and
   decides when to ask and what to draw; the other modules know neither. */

import * as acting from "./acting.js";
import * as airflow from "./airflow.js";
import * as api from "./api.js";
import { timeAt } from "./charts.js";
import { h, patch } from "./dom.js";
import { setZone } from "./format.js";
import { listView, pageOf, selection } from "./list.js";
import { button, clock, tick } from "./parts.js";
import { dayView } from "./pictures.js";
import { poolView } from "./pool.js";
import { asCsv, asJson, isPartial, isWrong, merged } from "./rows.js";
import { format, parse, to } from "./state.js";

const TYPING_MS = 250; // between the last letter of a search and its request
const EAGER_MS = [100, 150, 250, 400, 600]; // while newer data is on its way
const HISTORY_MS = 60000;
const LATE_SECONDS = 180; // after which data is stale though nothing has failed, unless it is asked for less often

const at = (id) => document.getElementById(id);
const [main, headPlace, banners, place, announcer] = ["main", "head", "banners", "view", "announcer"].map(at);

let view = {};
/* Answers of the server: the list, the pool in full, its output, the last day. */
let list = null;
let rows = [];
let found = { q: "", words: new Map() }; // what the server has found: the uuids in a set for each word of the search
let pool = null;
let output = null;
let history = null;
let problem = null;
let skew = 0; // of the server's clock
let every = 5; // seconds between two rounds of requests of the server
let isPaused = false;
let listHash = "#"; // where "back" leads
const selected = new Set();
const tables = new Set(); // pictures whose table is open
const reader = new Map(); // pictures by key, for their tips
let known = null; // problems that were announced, by uuid

const now = () => Date.now() / 1000 + skew;
const isOpen = (chosen) => Boolean(pool && pool.of === chosen.uuid);

// ---- asking the server

let timer = 0;
let generation = 0;
let eager = 0;

async function refresh() {
  clearTimeout(timer);
  generation += 1;
  const own = generation;
  let wait = 0;
  let isRefreshing = false;
  try {
    isRefreshing = view.pool ? await askPool(own) : view.tab === "day" && !api.run ? await askDay(own) : await askList(own);
    if (own !== generation) return;
    problem = null;
    eager = isRefreshing ? eager + 1 : 0;
    if (isRefreshing) wait = EAGER_MS[Math.min(eager, EAGER_MS.length) - 1];
  } catch (error) {
    if (own !== generation) return;
    problem = error;
  }
  render();
  if (!document.hidden && (!isPaused || (isRefreshing && isWaiting()))) timer = setTimeout(refresh, wait || 1000 * every);
}

/* Whether something is shown that has never been answered. It is asked for even if the page is paused. */
function isWaiting() {
  if (!view.pool) return view.tab !== "day" && !rows.length;
  return !(isOpen(view.pool) && pool.pool) || Boolean(view.task && !(output && output.output));
}

const setClock = (body) => { skew = body.now - Date.now() / 1000; every = body.every || every; };

async function askList(own) {
  const shown = [...place.querySelectorAll("tr[data-uuid]")].map((row) => row.dataset.uuid);
  const { q } = view;
  const body = await api.list((list || {}).version || "", shown, q);
  if (own !== generation) return false;
  setClock(body);
  if (rows.length && !body.known && body.connections.every((each) => each.age === null)) {
    // The server has been restarted. What it has told before is shown until it knows more.
    const errorOf = (id) => (body.connections.find((each) => each.id === id) || body.connections[0] || { error: null }).error;
    list = { ...list, connections: list.connections.map((each) => ({ ...each, error: errorOf(each.id) })) };
    return body.refreshing;
  }
  rows = merged(rows, body);
  found = { q, words: new Map(Object.entries(body.found).map(([word, uuids]) => [word, new Set(uuids)])) };
  list = { ...body, pools: null, gone: null, found: null };
  if (selected.size) {
    const closable = new Set(rows.filter((row) => row.closable).map((row) => row.uuid));
    for (const uuid of selected) if (!closable.has(uuid)) selected.delete(uuid);
  }
  announce();
  return body.refreshing || isComing(body);
}

async function askPool(own) {
  const chosen = view.pool;
  const { task } = view;
  const body = await api.pool(chosen, isOpen(chosen) && pool.pool ? pool.version : "");
  if (own !== generation) return false;
  setClock(body);
  const before = isOpen(chosen) ? pool.pool : null;
  if (before && !body.unchanged && !body.pool) pool = { ...pool, error: body.error }; // the server has been restarted
  else pool = { ...body, pool: body.unchanged ? before : body.pool, of: chosen.uuid };
  let isRefreshing = body.refreshing;
  if (task) {
    try {
      const answer = await api.output(chosen, task);
      if (own !== generation) return false;
      output = { ...answer, task };
      isRefreshing = isRefreshing || answer.refreshing;
    } catch (error) {
      if (own !== generation) return false;
      output = { task, error: error.message, output: null };
    }
  }
  return isRefreshing;
}

const isComing = (body) => body.connections.some((connection) => connection.refreshing);

async function askDay(own) {
  if (history && !isComing(history) && Date.now() - history.asked < HISTORY_MS) return false;
  const body = await api.history();
  if (own !== generation) return false;
  setClock(body);
  history = { ...body, asked: Date.now() };
  return isComing(history);
}

/* Tell a screen reader once of each pool that needs attention anew. */
function announce() {
  const before = known;
  known = new Map(rows.filter(isWrong).map((row) => [row.uuid, row.severity]));
  const fresh = before ? rows.filter((row) => isWrong(row) && before.get(row.uuid) !== row.severity) : [];
  if (!fresh.length) return;
  const [first, ...others] = fresh;
  announcer.textContent = `${first.name}: ${first.warnings[0] ? first.warnings[0].text : first.word}${others.length ? `, and ${others.length} more` : ""}`;
}

// ---- drawing

let isPressed = false;
let isLate = false;

/* Draw the state. While a button or a text is held down nothing moves; it is drawn on release. */
function render() {
  if (isPressed) { isLate = true; return; }
  const chosen = view.pool;
  const detail = chosen && isOpen(chosen) ? pool.pool : null;
  patch(headPlace, headView(chosen));
  patch(banners, bannerView(chosen));
  reader.clear();
  patch(place, chosen ? detailView(chosen, detail) : pageView());
  const isBusy = String(!(chosen ? detail : view.tab === "day" ? history : list) && !problem);
  if (main.getAttribute("aria-busy") !== isBusy) main.setAttribute("aria-busy", isBusy);
  const title = detail ? `${detail.row.name} · Qarnot pools` : "Qarnot pools";
  if (document.title !== title) document.title = title;
  focusTitle(detail);
  tick(document, now());
}

const width = () => place.clientWidth || 1000;
const mayEdit = (connection) => Boolean(list) && list.connections.some((each) => each.id !== null && each.id === connection && each.may_edit);

function headView(chosen) {
  const tabs = [["", "Pools"], ["day", "Last 24 hours"]];
  return h("div", { class: "top" },
    chosen
      ? h("a", { class: "back", href: listHash }, api.run ? "← Pools of this run" : "← All pools")
      : h("h1", { tabindex: "-1" }, api.run ? "Qarnot pools of this DAG run" : "Qarnot pools"),
    chosen || api.run ? null : h("nav", { class: "tabs", "aria-label": "Views" }, tabs.map(([tab, text]) =>
      h("a", { key: text, href: to(view, { tab }), "aria-current": (view.tab === "day") === (tab === "day") ? "page" : null }, text))),
    h("div", { class: "live" }, statusView(chosen), button("refresh", { title: "Ask now" }, "Refresh"),
      button("pause", { "aria-pressed": String(isPaused) }, isPaused ? "Resume" : "Pause")));
}

/* The answers that are shown: {id, age, error, now}, one per connection. */
function shownEntries(chosen) {
  if (chosen) return isOpen(chosen) ? [{ ...pool, id: chosen.connection }] : [];
  const body = view.tab === "day" && !api.run ? history : list;
  return body ? body.connections.map((entry) => ({ age: body === history ? 0 : null, error: null, ...entry, now: body.now })) : [];
}

/* How old the data is: live, late, or paused. */
function statusView(chosen) {
  const entries = shownEntries(chosen);
  const isDated = ({ age }) => age !== null && age !== undefined;
  const ages = entries.filter(isDated).map((entry) => entry.age);
  const isStale = Boolean(problem) || entries.some((entry) => entry.error) || ages.some((age) => age > Math.max(LATE_SECONDS, 3 * every));
  const kind = isPaused ? "off" : isStale ? "bad" : "good";
  const word = isPaused ? "Paused, " : isStale ? "Stale, " : "";
  if (!ages.length) return h("span", { class: `state ${kind}` }, isPaused ? "Paused" : isStale ? "No data" : "Asking Qarnot…");
  const oldest = Math.min(...entries.filter(isDated).map((entry) => entry.now - entry.age));
  return h("span", { class: `state ${kind}` }, h("span", {}, `${word}as of `, clock(Math.round(oldest), "fine"), " ago"));
}

function bannerView(chosen) {
  const shown = problem ? [[null, problem.message]] : [];
  for (const entry of shownEntries(chosen)) if (entry.error) shown.push([entry.id, `${entry.error}${entry.age === null ? "" : " The data shown is older."}`]);
  return shown.map(([id, text]) => h("div", { class: "banner", key: `${id} ${text}` }, id ? h("strong", {}, `Connection ${id}: `) : null, text));
}

function detailView(chosen, detail) {
  if (!detail) {
    return problem || (isOpen(chosen) && pool.error) ? null : h("p", { class: "quiet" }, "Asking Qarnot…");
  }
  return poolView({ detail, view, now: now(), width: width(), tables, reader, output, mayEdit: Boolean(pool.may_edit) && detail.row.connection !== null });
}

function pageView() {
  if (view.tab === "day" && !api.run) return dayView({ history, width: width(), tables, reader });
  if (!list) return problem ? null : h("p", { class: "quiet" }, "Asking Qarnot…");
  const isKnown = list.known || list.connections.some((each) => each.age !== null);
  const isHopeless = list.connections.length > 0 && list.connections.every((each) => each.error !== null);
  if (!isKnown && !rows.length) return isHopeless ? null : h("p", { class: "quiet" }, "Asking Qarnot…");
  return listView({ rows, view, now: now(), found, selected, mayEdit, connections: list.connections });
}

/* The focus follows once when a pool is opened or left, and not at the first sight of the page. */
let focusFor = null;
function focusTitle(detail) {
  const shown = view.pool ? view.pool.uuid : "";
  if (focusFor === null) focusFor = shown;
  if (focusFor === shown || (view.pool && !detail)) return;
  focusFor = shown;
  const title = document.querySelector("h1");
  if (title) title.focus({ preventScroll: true });
}

// ---- the address

/* Show what *hash* says. */
function open(hash) {
  const before = view;
  view = parse(hash);
  if (api.run && view.pool && view.pool.connection) view.pool.connection = null;
  airflow.setOuterHash(format(view));
  if (!view.pool) listHash = format(view);
  const isOther = (before.pool || {}).uuid !== (view.pool || {}).uuid;
  if (isOther) {
    problem = null;
    window.scrollTo(0, 0);
    if (!view.pool) pool = null;
  }
  if (before.task !== view.task) output = null;
  render();
  if (isOther || before.tab !== view.tab || before.task !== view.task) refresh();
  else if (before.q !== view.q && isPartial(rows, view.q, found)) {
    clearTimeout(timer);
    timer = setTimeout(refresh, TYPING_MS);
  }
}

/* Change the view in place, without an entry in the history for each letter. */
function change(changes) {
  const hash = to(view, changes);
  window.history.replaceState(null, "", hash === "#" ? location.pathname + location.search : hash);
  open(hash);
}

window.addEventListener("hashchange", () => open(location.hash));
/* Airflow's own address may be changed by hand, or by Airflow's router. */
function followOuter() {
  const outer = airflow.outerHash();
  if (outer !== location.hash && format(parse(outer)) !== format(view)) {
    window.history.replaceState(null, "", outer || location.pathname + location.search);
    open(outer);
  }
}

// ---- what people do

const rowOf = (uuid) => (pool && pool.pool && view.pool && pool.pool.row.uuid === uuid ? pool.pool.row : rows.find((row) => row.uuid === uuid));
const chosenRows = () => pageOf(rows, view, now(), found).all;
let toasted = 0;
/* Say *text* at the bottom of the page for some time. */
function toast(text, milliseconds = 2500) {
  clearTimeout(toasted);
  announcer.textContent = text;
  announcer.className = "toast";
  toasted = setTimeout(() => { announcer.className = "hidden"; }, milliseconds);
}
const failedLate = (text) => toast(text, 15000);

async function copied(element, text) {
  const isDone = await airflow.copy(text);
  toast(isDone ? "Copied" : "The browser does not allow to copy");
  element.closest("details.menu")?.removeAttribute("open");
}

const ACTIONS = {
  refresh,
  pause() { isPaused = !isPaused; if (isPaused) { clearTimeout(timer); generation += 1; render(); } else refresh(); },
  close: (element) => acting.close(rowOf(element.dataset.uuid), refresh, failedLate),
  resize: (element) => acting.resize(rowOf(element.dataset.uuid), refresh, failedLate),
  "close-selected": () => acting.closeAll(rows.filter((row) => selected.has(row.uuid)), (closed) => { for (const row of closed) selected.delete(row.uuid); refresh(); }, failedLate),
  "copy-selected": (element) => copied(element, [...selected].join("\n")),
  "select-none": () => { selected.clear(); render(); },
  select: (element) => {
    for (const uuid of selection({ now: now(), mayEdit }, chosenRows(), element.dataset.which)) selected.add(uuid);
    element.closest("details.menu").removeAttribute("open");
    render();
  },
  export: (element) => {
    const isCsv = element.dataset.type === "csv";
    if (isCsv) airflow.save("qarnot-pools.csv", "text/csv;charset=utf-8", `\ufeff${asCsv(chosenRows())}`);
    else airflow.save("qarnot-pools.json", "application/json", asJson(chosenRows()));
    element.closest("details.menu").removeAttribute("open");
  },
  "copy-uuids": (element) => copied(element, chosenRows().map((row) => row.uuid).join("\n")),
  "copy-address": (element) => copied(element, airflow.addressOf(format(view), Boolean(api.run))),
  "copy-text": (element) => copied(element, element.dataset.text),
  "dialog-no": () => acting.answer("no"),
  "dialog-other": () => acting.answer("other"),
  "dialog-yes": () => acting.answer("yes"),
};

document.addEventListener("click", (event) => {
  const element = event.target.closest("[data-do]");
  if (element) ACTIONS[element.dataset.do](element);
});

/* Links lead the page around the frame; those within this page open a new tab there if asked to. */
function follow(event) {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || (event.button && event.button !== 1)) return;
  const isNewTab = event.ctrlKey || event.metaKey || event.shiftKey || event.button === 1 || link.dataset.go === "outside";
  const isWithin = link.getAttribute("href").startsWith("#");
  if (!airflow.isFramed() || (isWithin && !isNewTab)) return;
  event.preventDefault();
  airflow.go(isWithin ? airflow.addressOf(link.getAttribute("href"), Boolean(api.run)) : link.href, isNewTab);
}
document.addEventListener("click", follow);
document.addEventListener("auxclick", follow);

document.addEventListener("input", ({ target }) => { if (target.dataset.set && target.matches("input")) change({ [target.dataset.set]: target.value }); });
document.addEventListener("change", ({ target }) => {
  if (target.dataset.set && target.matches("select")) change({ [target.dataset.set]: target.dataset.set === "show" && target.value === "current" ? "" : target.value });
  if (target.dataset.pick) {
    if (target.checked) selected.add(target.dataset.pick);
    else selected.delete(target.dataset.pick);
    render();
  }
});

/* A menu closes when something else is clicked on, and on Escape. */
function closeMenus(except) {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(except)) menu.removeAttribute("open");
}
document.addEventListener("pointerdown", ({ target }) => closeMenus(target));
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && event.target.closest("details.menu[open]");
  if (!menu) return;
  menu.removeAttribute("open");
  menu.querySelector("summary").focus();
});
document.addEventListener("toggle", ({ target }) => {
  const key = target.dataset && target.dataset.table;
  if (!key) return;
  if (target.open) tables.add(key);
  else tables.delete(key);
  render();
}, true);

// ---- nothing moves under a finger

window.addEventListener("pointerdown", () => { isPressed = true; }, true);
const release = () => isPressed && setTimeout(() => {
  isPressed = false;
  if (isLate) { isLate = false; render(); }
});
for (const name of ["pointerup", "pointercancel", "blur"]) window.addEventListener(name, release, true);
for (const name of ["dragend", "change", "keydown"]) document.addEventListener(name, release, true);
// The list of a <select> swallows the end of the press that has opened it.
window.addEventListener("pointermove", (event) => { if (!event.buttons) release(); }, true);

// ---- pictures: tip, cross and zoom

let drag = null;

function pictureAt(event) {
  const svg = event.target.closest && event.target.closest(".canvas svg");
  const picture = svg && svg.closest("[data-picture]");
  const entry = picture && reader.get(picture.dataset.picture);
  if (!entry) return null;
  const box = svg.getBoundingClientRect();
  const ratio = entry.spec.width / box.width;
  const [left, top] = [event.clientX - box.left, event.clientY - box.top];
  return { ...entry, svg, box, ratio, x: left * ratio, y: top * ratio, t: timeAt(entry.spec, left, box.width) };
}

function hideTips() {
  for (const tip of document.querySelectorAll(".tip.on")) tip.classList.remove("on");
  for (const cross of document.querySelectorAll(".cross.on")) cross.classList.remove("on");
}

document.addEventListener("pointermove", (event) => {
  const found = pictureAt(event);
  hideTips();
  if (!found) return;
  const tip = found.svg.parentElement.querySelector(".tip");
  tip.textContent = found.read(found.spec, found.t, found.y).join("\n");
  tip.classList.add("on");
  const left = event.clientX - found.box.left;
  tip.style.left = `${Math.max(0, Math.min(left + 12, found.box.width - tip.offsetWidth))}px`;
  tip.style.top = `${Math.max(0, event.clientY - found.box.top - tip.offsetHeight - 8)}px`;
  const cross = found.svg.querySelector(".cross");
  cross.classList.add("on");
  cross.setAttribute("transform", `translate(${found.x} 0)`);
  if (drag && drag.svg === found.svg) {
    const range = found.svg.querySelector(".range");
    range.setAttribute("x", String(Math.min(drag.x, found.x)));
    range.setAttribute("width", String(Math.abs(found.x - drag.x)));
  }
});
document.addEventListener("pointerdown", (event) => {
  const found = event.pointerType === "mouse" && event.button === 0 && pictureAt(event);
  drag = found && found.svg.dataset.drag && view.pool ? found : null;
  if (drag) event.preventDefault();
});
document.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const from = drag;
  drag = null;
  from.svg.querySelector(".range").setAttribute("width", "0");
  const end = timeAt(from.spec, event.clientX - from.box.left, from.box.width);
  const [a, b] = [Math.floor(Math.min(from.t, end)), Math.ceil(Math.max(from.t, end))];
  if (b - a >= 2 && Math.abs(event.clientX - from.box.left - from.x / from.ratio) > 6) {
    isPressed = false;
    change({ zoom: `${a}-${b}` });
  }
});

// ---- start

airflow.follow(() => { if (setZone(airflow.timeZone())) render(); });
setZone(airflow.timeZone());
document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else if (!isPaused) refresh(); });
setInterval(() => { tick(document, now()); followOuter(); }, 1000);
let drawnFor = 0;
new ResizeObserver(() => {
  if (drawnFor && drawnFor !== width() && reader.size) render();
  drawnFor = width();
}).observe(place);

const first = airflow.outerHash() || location.hash;
if (first && first !== location.hash) window.history.replaceState(null, "", first);
open(first);
if (!generation) refresh();
