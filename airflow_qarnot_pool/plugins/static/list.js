/* The list of pools: tiles, filters, table, bulk actions. */

import { run } from "./api.js";
import { h } from "./dom.js";
import { energy, epoch, euros, grams, plural, stamp, whole } from "./format.js";
import { airflowLink, button, clock, lasting, line, quiet, stateBadge, taskCounts, tight, under, warningText } from "./parts.js";
import {
  BULK, FACETS, GROUPS, PROBLEMS, SHOW, choices, chosen, figuresOf, grouped, isEnded, isPartial, isWrong, level, levelOf, since, sum, sumOf,
  sumOfPools, tasksOf,
} from "./rows.js";
import { to, toPool } from "./state.js";

export const PER_PAGE = 50;

/* The rows on the page of *view*: {all, groups, pages, page}, where all are those of every page. */
export function pageOf(rows, view, now, found) {
  const all = chosen(rows, view, now, Boolean(run), found);
  const groups = grouped(all, view.group);
  const total = groups.reduce((count, [, members]) => count + members.length, 0);
  const pages = Math.max(1, Math.ceil(total / PER_PAGE));
  const page = Math.min(Math.max(1, Number.parseInt(view.page, 10) || 1), pages);
  let before = (page - 1) * PER_PAGE;
  let left = PER_PAGE;
  const onPage = groups.map(([name, members]) => {
    const shown = members.slice(before, before + left);
    before = Math.max(0, before - members.length);
    left -= shown.length;
    return { name, members, shown };
  });
  return { all, pages, page, groups: onPage.filter((group) => group.shown.length) };
}

/* The list below the head of the page. *state* is {rows, view, now, found, selected, mayEdit, connections}. */
export function listView(state) {
  const { rows, view } = state;
  if (!rows.length) return [nothing()];
  const found = pageOf(rows, view, state.now, state.found);
  return [
    tiles(rows, view, state.now),
    tools(state, found.all),
    chips(view),
    bulk(state),
    found.all.length ? table(state, found) : noMatch(state),
    found.all.length ? foot(view, found) : null,
  ];
}

function nothing() {
  return h("div", { key: "empty", class: "empty" },
    h("strong", {}, run ? "No Qarnot pool belongs to this DAG run" : "No pools, and nothing is billed"),
    run ? "Pools that its tasks open or use are shown here." : "A pool is shown here as soon as a DAG opens one.");
}

function noMatch({ rows, view, found }) {
  if (isPartial(rows, view.q, found)) return h("p", { key: "searching", class: "quiet" }, "Searching…");
  const isAll = run || view.show === "all";
  return h("div", { key: "empty", class: "empty" }, h("strong", {}, "No pool matches"),
    isAll ? null : h("p", {}, h("a", { href: to(view, { show: "all" }) }, "Search all pools, also those that ended long ago")),
    h("p", {}, h("a", { href: "#" }, "Remove all filters")));
}

// ---- tiles: each is a number, and a filter where there is one

function tiles(rows, view, now) {
  const open = rows.filter((row) => !isEnded(row));
  const wrong = rows.filter(isWrong);
  const total = (list, read) => sum(list, read).value;
  const slots = (name) => whole(total(open, (row) => row[name]));
  const counted = open.filter(tasksOf);
  const tasks = (name) => total(counted, (row) => tasksOf(row)[name]);
  const failed = total(rows.filter((row) => SHOW.tasks[1](row, now)), (row) => tasksOf(row) && tasksOf(row).failed);
  return h("div", { key: "tiles", class: "tiles" },
    tile("wrong", view, "Need attention", whole(wrong.length), problems(wrong), wrong.some((row) => level(row) === "bad") ? "bad" : wrong.length ? "warn" : ""),
    tile("open", view, "Open pools", whole(open.length), rows.length > open.length ? `${whole(rows.length - open.length)} ended` : ""),
    tile(null, view, "Slots ready", slots("ready"), `of ${slots("wanted")}, ${slots("busy")} busy`),
    counted.length < open.length
      ? tile(null, view, "Qarnot tasks", "…", "being counted")
      : tile(failed ? "tasks" : null, view, "Qarnot tasks", whole(tasks("running")),
        `running, ${failed ? `${whole(failed)} failed, ` : ""}${whole(tasks("queued"))} queued`),
    costTile(rows, open, view, now),
    carbonTile(rows, view));
}

function tile(show, view, name, value, more, kind = "") {
  const content = [h("span", { class: "label" }, name), h("span", { class: "value" }, value), more ? h("span", { class: "more", title: more }, more) : null];
  if (!show || run) return h("div", { class: `tile ${kind}`, key: name }, content);
  const isOn = view.show === show;
  return h("a", { class: `tile ${kind}${isOn ? " on" : ""}`, key: name, href: to(view, { show: isOn ? "" : show }), "aria-current": isOn ? "true" : null }, content);
}

function problems(wrong) {
  const counts = new Map();
  for (const row of wrong) counts.set(row.severity, (counts.get(row.severity) || 0) + 1);
  return [...counts].slice(0, 3).map(([kind, count]) => `${count} ${PROBLEMS[kind] || kind}`).join(", ");
}

/* A sum, which is a lower bound if something is unknown. */
export const atLeast = ({ value, unknown }, rows, format) => (unknown === rows.length ? "–" : `${unknown ? "≥ " : ""}${format(value)}`);

function costTile(rows, open, view, now) {
  const cost = sumOf(rows, "euros");
  const rate = sum(open, (row) => (row.figures || {}).per_hour);
  const first = since(rows);
  const parts = [];
  if (run && rows.some((row) => row.mine)) parts.push(`of ${atLeast(sumOfPools(rows, "euros"), rows, euros)} in all`);
  else if (open.length && rate.value > 0) parts.push(`${rate.unknown ? "≥ " : ""}${euros(rate.value)} an hour`);
  if (cost.unknown && cost.unknown < rows.length) parts.push(`${cost.unknown} unknown`);
  if (first) parts.push(`since ${momentOf(epoch(first), now)}`);
  return tile(null, view, run ? "Cost of this run" : "Cost", atLeast(cost, rows, euros), parts.join(", "));
}

/* The minute of today, or else the day. */
function momentOf(seconds, now) {
  const [day, time] = stamp(seconds).split(" ");
  return stamp(now).startsWith(day) ? time.slice(0, 5) : day;
}

function carbonTile(rows, view) {
  const saved = sumOf(rows, "saved_g");
  return tile(null, view, "CO₂eq saved", atLeast(saved, rows, grams), "", "carbon");
}

// ---- search, filters, export

function tools(state, all) {
  const { rows, view } = state;
  const filters = Object.entries(FACETS).map(([name, [text]]) => [name, text, choices(rows, name)]).filter(([name, , values]) => values.length > 1 || view[name]);
  const active = filters.filter(([name]) => view[name]).length;
  return h("div", { key: "tools", class: "tools", role: "search" },
    h("input", { type: "search", placeholder: "Name, DAG, run, task, tag, error, uuid…", "aria-label": "Search pools", "data-set": "q", value: view.q || "" }),
    run ? null : h("select", { "aria-label": "Which pools", "data-set": "show", value: view.show || "current" },
      Object.entries(SHOW).map(([name, [text]]) => h("option", { value: name, key: name }, text))),
    filters.length ? h("details", { class: "menu", key: "filter" }, h("summary", {}, active ? `Filter (${active})` : "Filter"),
      h("div", { class: "panel" }, filters.map(([name, text, values]) => h("label", { key: name }, text,
        h("select", { "data-set": name, value: view[name] || "" }, h("option", { value: "" }, "All"),
          values.map(([value, count]) => h("option", { value, key: value }, `${value} (${count})`))))))) : null,
    h("label", { class: "inline" }, "Group by", h("select", { "data-set": "group", value: view.group || "" }, h("option", { value: "" }, "nothing"),
      Object.entries(GROUPS).map(([name, [text]]) => h("option", { value: name, key: name }, text)))),
    picker(state, all),
    h("details", { class: "menu", key: "export" }, h("summary", {}, "Export"), h("div", { class: "panel" },
      button("export", { "data-type": "csv" }, `CSV of ${plural(all.length, "pool")}`),
      button("export", { "data-type": "json" }, `JSON of ${plural(all.length, "pool")}`),
      button("copy-uuids", {}, "Copy their uuids"),
      button("copy-address", {}, "Copy the address"))));
}

function chips(view) {
  const parts = Object.entries(FACETS).filter(([name]) => view[name]).map(([name, [text]]) =>
    h("a", { class: "chip", key: name, href: to(view, { [name]: "" }), "aria-label": `Remove the filter ${text} ${view[name]}` }, `${text}: ${view[name]} ✕`));
  return parts.length ? h("p", { key: "chips", class: "chips" }, parts) : null;
}

// ---- bulk actions

function bulk({ selected, rows }) {
  if (!selected.size) return null;
  const chosenRows = rows.filter((row) => selected.has(row.uuid));
  return h("div", { key: "bulk", class: "bulk" },
    h("strong", {}, `${plural(chosenRows.length, "pool")} selected`),
    button("close-selected", { class: "danger" }, "Close…"),
    button("copy-selected", {}, "Copy uuids"),
    button("select-none", {}, "Clear"));
}

const isPickable = (row, state) => row.closable && state.mayEdit(row.connection);

function picker(state, all) {
  const pickable = all.filter((row) => isPickable(row, state));
  if (!pickable.length) return null;
  return h("details", { class: "menu", key: "picker" }, h("summary", {}, "Select"),
    h("div", { class: "panel" }, Object.entries(BULK).map(([name, [text, keep]]) =>
      button("select", { key: name, "data-which": name }, `${text} (${pickable.filter((row) => keep(row, state.now)).length})`))));
}

/* The uuids of a bulk selection among *all*. */
export const selection = (state, all, which) => all.filter((row) => isPickable(row, state) && BULK[which][1](row, state.now)).map((row) => row.uuid);

// ---- the table

function table(state, { groups }) {
  const { view } = state;
  const head = (key, text, style) => {
    const sort = (view.sort || "").replace(/^-/, "") === key ? view.sort : "";
    const next = !sort ? `-${key}` : sort.startsWith("-") ? key : "";
    return h("th", { class: style, scope: "col", "aria-sort": !sort ? "none" : sort.startsWith("-") ? "descending" : "ascending" },
      h("a", { class: "sort", href: to(view, { sort: next }) }, text, h("span", { "aria-hidden": "true" }, sort ? (sort.startsWith("-") ? " ↓" : " ↑") : "")));
  };
  return h("div", { key: "table", class: "scroll" }, h("table", { class: "pools" },
    h("caption", { class: "hidden" }, "Qarnot pools, the most urgent first"),
    h("thead", {}, h("tr", {},
      h("th", { scope: "col", class: "pick" }, h("span", { class: "hidden" }, "Select")),
      head("name", "Pool", "name"), head("state", "State", "phase"), head("slots", "Slots", "number slots"), head("tasks", "Qarnot tasks", "tasks"),
      run ? null : h("th", { scope: "col", class: "for" }, "For"), head("age", "Age", "number roomy age"), head("cost", "Cost", "number cost"),
      head("carbon", "Carbon", "number roomy carbon"), h("th", { scope: "col", class: "act" }, h("span", { class: "hidden" }, "Actions")))),
    groups.map((group) => h("tbody", { key: `group ${group.name}` },
      group.name === null ? null : groupRow(group, view),
      group.shown.map((row) => tableRow(row, state))))));
}

function groupRow({ name, members }, view) {
  const wrong = members.filter(isWrong).length;
  const filter = FACETS[view.group] && name !== "none" ? { [view.group]: name, group: "" } : null;
  const urgent = wrong && view.group !== "problem" ? `${wrong} ${wrong === 1 ? "needs" : "need"} attention` : null;
  const facts = [plural(members.length, "pool"), atLeast(sumOf(members, "euros"), members, euros), urgent];
  return h("tr", { class: "group", key: "group" }, h("th", { colspan: run ? 9 : 10, scope: "rowgroup" },
    filter ? h("a", { href: to(view, filter) }, name) : name, quiet(` ${facts.filter(Boolean).join(" · ")}`)));
}

const cell = (name, props, ...children) => h("td", { "data-label": name, ...props }, ...children);

function tableRow(row, state) {
  const ended = isEnded(row) && row.ended;
  const age = lasting(epoch(row.created), ended ? epoch(row.ended) : null);
  const after = ended ? ["ended ", clock(epoch(row.ended)), " ago"] : null;
  return h("tr", { key: row.uuid, "data-uuid": row.uuid, class: level(row) || null },
    cell("Select", { class: "pick" }, isPickable(row, state)
      ? h("input", { type: "checkbox", "aria-label": `Select pool ${row.name}`, "data-pick": row.uuid, checked: state.selected.has(row.uuid) }) : null),
    cell("Pool", { class: "name" }, h("a", { href: toPool(run ? { ...row, connection: null } : row), title: row.name }, row.name), second(row, state)),
    cell("State", { class: "phase" }, stateBadge(row), detailOfState(row), tight(after || ["for ", age])),
    cell("Slots", { class: "number slots" }, h("span", {}, isEnded(row) ? "–" : row.wanted ? `${row.ready} of ${row.wanted}` : String(row.ready))),
    cell("Qarnot tasks", { class: "tasks" }, taskCounts(tasksOf(row))),
    run ? null : cell("For", { class: "for" }, ...owner(row)),
    cell("Age", { class: "number roomy age" }, h("span", { title: row.created ? stamp(epoch(row.created)) : null }, age), after ? under(after) : null),
    cell("Cost", { class: "number cost" }, ...cost(row)),
    cell("Carbon", { class: "number roomy carbon" }, ...carbon(figuresOf(row))),
    cell("", { class: "act" }, isPickable(row, state)
      ? button("close", { class: "danger", "data-uuid": row.uuid, "aria-label": `Close pool ${row.name}` }, "Close") : null));
}

/* The second line of a pool: its worst warning, or else whose it is. */
function second(row, state) {
  const [worst, ...others] = row.warnings;
  if (worst) {
    const all = [...row.warnings.map((warning) => warning.text), ...row.errors.map((error) => error.text)];
    const cause = worst.kind === "tasks" && row.errors.length ? `: ${row.errors[0].text}` : "";
    return h("span", { class: `under problem ${levelOf(worst)}`, title: all.join("\n") },
      ...warningText({ ...worst, text: worst.text + cause }), others.length ? h("span", { class: "others" }, ` +${others.length}`) : null);
  }
  if (run && row.owner.kind === "shared") return under("shared: ", h("strong", {}, row.owner.shared || "?"));
  if (run && row.owner.kind === "executor") return under("QarnotExecutor: ", h("strong", {}, row.owner.executor || "?"));
  if (run && row.mine) return under("used by several DAG runs");
  return state.connections.length > 1 ? under(row.connection) : null;
}

function detailOfState(row) {
  if (row.closed_by) return under(`by ${row.closed_by.user}`, quiet(` · ${row.state}`));
  return under(row.closes_when_idle && !isEnded(row) ? "closes when idle" : row.state);
}

function owner(row) {
  const whose = row.owner;
  const name = { shared: `shared: ${whose.shared || "?"}`, executor: `QarnotExecutor: ${whose.executor || "?"}` }[whose.kind];
  if (name) return [line(name), row.user_count ? under(plural(row.user_count, "DAG run")) : null];
  if (whose.kind !== "run") return [quiet("not known")];
  const state = whose.run_state === "running" ? "" : whose.run_state ? `${whose.run_state} · ` : "no such run · ";
  return [airflowLink(whose.link, whose.dag_id), h("span", { class: "under", title: whose.run_id }, `${state}${whose.run_id}`)];
}

function cost(row) {
  const own = figuresOf(row);
  const more = [];
  if (row.mine && row.figures) more.push(`of ${euros(row.figures.euros)} for the pool`);
  else if (row.figures && row.figures.per_hour && !isEnded(row)) more.push(`${euros(row.figures.per_hour)}/h`);
  if (own && own.carbon_g !== null) more.push(h("span", { class: "tight" }, `${more.length ? " · " : ""}${grams(own.carbon_g)}`));
  return [h("span", {}, own ? euros(own.euros) : "…"), more.length ? under(more) : null];
}

function carbon(values) {
  if (!values) return [h("span", {}, "…")];
  if (values.energy_wh === null && values.carbon_g === null) return [h("span", {}, "–")];
  const against = values.datacenter ? `Saved against ${values.datacenter}` : null;
  return [h("span", { title: energy(values.energy_wh) }, grams(values.carbon_g)),
    values.saved_g === null ? null : h("span", { class: "under", title: against }, `${grams(values.saved_g)} saved`)];
}

// ---- below the table

function foot(view, { all, pages, page, groups }) {
  const first = groups.length ? (page - 1) * PER_PAGE + 1 : 0;
  const count = groups.reduce((total, group) => total + group.shown.length, 0);
  const cost = sumOf(all, "euros");
  const saved = sumOf(all, "saved_g");
  const carbonSaved = saved.unknown < all.length ? `, ${atLeast(saved, all, grams)} CO₂eq saved` : "";
  const unknown = cost.unknown ? `, ${plural(cost.unknown, "cost")} not known` : "";
  const turn = (text, number, isThere) => (isThere ? h("a", { key: text, class: "turn", href: to(view, { page: number > 1 ? String(number) : "" }) }, text) : null);
  return h("div", { key: "foot", class: "foot" },
    quiet(`${first}–${first + count - 1} of ${plural(all.length, "pool")}, cost ${atLeast(cost, all, euros)}${unknown}${carbonSaved}`),
    pages > 1 ? h("nav", { "aria-label": "Pages", class: "pager" },
      turn("← Previous", page - 1, page > 1), quiet(`page ${page} of ${pages}`), turn("Next →", page + 1, page < pages)) : null);
}
