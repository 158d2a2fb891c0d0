/* One pool: what is wrong, facts, pictures, Qarnot tasks, nodes. */

import { run } from "./api.js";
import { h } from "./dom.js";
import { duration, energy, epoch, euros, grams, plural } from "./format.js";
import {
  GROUPS, GROUP_KIND, airflowLink, badge, button, clock, countsText, lasting, line, outsideLink, quiet, stateBadge, taskCounts, under,
  warningList, when,
} from "./parts.js";
import { poolPictures } from "./pictures.js";
import { figuresOf, isEnded, tasksOf } from "./rows.js";
import { to } from "./state.js";

const TABS = { overview: "Overview", tasks: "Qarnot tasks", nodes: "Nodes and events" };
const CLAMPED = 600;

/* The page of a pool. *state* is {detail, view, now, width, tables, mayEdit, output, reader}. */
export function poolView(state) {
  const { detail, view } = state;
  const tab = TABS[view.tab] ? view.tab : "overview";
  const counts = { tasks: detail.task_count, nodes: detail.nodes.length };
  const content = { overview, tasks: tasksTab, nodes: nodesTab }[tab];
  return [
    head(state),
    closedBy(detail.row),
    warningList(detail.row),
    h("nav", { key: "tabs", class: "tabs", "aria-label": "Parts of the pool" }, Object.entries(TABS).map(([name, text]) =>
      h("a", { key: name, href: to(view, { tab: name === "overview" ? "" : name, task: "" }), "aria-current": name === tab ? "page" : null },
        text, counts[name] === undefined ? null : quiet(` ${counts[name]}`)))),
    h("section", { key: `tab ${tab}`, "aria-label": TABS[tab] }, content(state)),
  ];
}

function head({ detail: { row }, mayEdit }) {
  return h("div", { key: "head", class: "head" },
    h("div", { class: "title" }, h("h1", { tabindex: "-1" }, row.name), stateBadge(row), quiet(row.state)),
    h("div", { class: "buttons" },
      outsideLink(row.console, "Qarnot console ↗"),
      h("details", { class: "menu" }, h("summary", {}, "Copy"), h("div", { class: "panel" },
        button("copy-text", { "data-text": row.uuid }, "Copy the uuid"),
        button("copy-address", {}, "Copy the address"))),
      mayEdit && row.resizable ? button("resize", { key: "resize", "data-uuid": row.uuid }, "Resize…") : null,
      mayEdit && row.closable ? button("close", { key: "close", class: "danger", "data-uuid": row.uuid }, "Close…") : null));
}

function closedBy({ closed_by: by, closes_when_idle: isWanted, idle_close_by: wish }) {
  if (by) return h("p", { key: "closed by", class: "quiet" }, "Closed from this page by ", h("strong", {}, by.user), ", ", when(by.at));
  if (!isWanted) return null;
  return h("p", { key: "closed by", class: "quiet" }, "To be closed by the reaper when idle", wish ? [", as ", h("strong", {}, wish.user), " asked, ", when(wish.at)] : null);
}

// ---- overview

function overview(state) {
  const { detail } = state;
  return [errors(detail), facts(detail), ...poolPictures(state), users(detail.row)];
}

function errors({ errors: groups }) {
  if (!groups.length) return null;
  return h("div", { key: "errors", class: "errors" }, h("h2", {}, "Errors"), groups.map((group) => h("article", { class: "error", key: group.of + group.text },
    h("p", { class: "of" }, h("strong", {}, group.of === "pool" ? "The pool" : plural(group.count, "Qarnot task")),
      group.last ? quiet(" last ", when(group.last), group.first && group.first !== group.last ? [", first ", when(group.first)] : null) : null),
    clamped(group.text),
    group.tasks.length ? h("p", { class: "where" },
      group.tasks.map((task) => h("span", { key: task.uuid, class: "one" },
        airflowLink(task.link, nameOf(task)), task.log ? [" (", airflowLink(task.log, "log"), ")"] : null)),
      group.count > group.tasks.length ? quiet(`and ${group.count - group.tasks.length} more`) : null) : null)));
}

/* A long text shows its start, and all of it on request. */
function clamped(text) {
  if (text.length <= CLAMPED && text.split("\n").length <= 8) return h("pre", {}, text);
  const start = text.split("\n").slice(0, 8).join("\n").slice(0, CLAMPED);
  return h("details", { class: "long" }, h("summary", {}, h("pre", {}, `${start} …`)), h("pre", {}, text));
}

function facts(detail) {
  const { row } = detail;
  const own = figuresOf(row) || {};
  const all = row.figures || {};
  const ofPool = (text) => (row.mine ? under(`of ${text} for the pool`) : null);
  const fact = (name, ...value) => h("div", { key: name }, h("dt", {}, name), h("dd", {}, ...value));
  const rate = all.per_hour && !isEnded(row) ? under(`${euros(all.per_hour)} an hour now`) : null;
  const { max_cost: limit, max_run_cost: limitOfRun } = row.limit || {};
  const limits = [limit ? under(`limit ${euros(limit)}`) : null, limitOfRun ? under(`limit of its DAG run ${euros(limitOfRun)}`) : null];
  const ended = isEnded(row) && row.ended;
  return h("dl", { key: "facts", class: "facts" },
    fact("For", ...owner(row)),
    fact("Slots", isEnded(row) ? "–" : `${row.ready} ready of ${row.wanted} wanted`,
      isEnded(row) ? null : under(`${row.busy} busy, ${row.queued} queued${row.follows_load ? `, ${row.max_slots} at most` : ""}`)),
    fact("Qarnot tasks", taskCounts(tasksOf(row)), row.mine && row.tasks ? under(`all runs: ${countsText(row.tasks)}`) : null),
    fact(row.mine ? "Cost of this run" : "Cost so far", euros(own.euros), ofPool(euros(all.euros)), rate, limits),
    fact("Created", when(row.created), ended ? under("lasted ", lasting(epoch(row.created), epoch(row.ended))) : under(clock(epoch(row.created)), " ago")),
    fact("Node time paid for", duration(detail.use.node_seconds), detail.use.idle_node_seconds === null ? null : under(`${row.owner.kind === "executor" ? "idle, or for tasks that are deleted by now" : "idle"}: ${duration(detail.use.idle_node_seconds)}`), row.mine ? under("the whole pool") : null),
    fact("Energy", energy(own.energy_wh), ofPool(energy(all.energy_wh))),
    fact("Carbon", `${grams(own.carbon_g)} CO₂eq`, ofPool(grams(all.carbon_g)), own.saved_g === null || own.saved_g === undefined ? null : under(`${grams(own.saved_g)} saved${own.datacenter ? ` against ${own.datacenter}` : ""}`)),
    row.tags.length ? fact("Tags", row.tags.join(", ")) : null,
    row.connection ? fact("Connection", row.connection) : null,
    fact("Shortname", row.shortname || "–"),
    fact("Uuid", h("code", {}, row.uuid)));
}

function owner(row) {
  const whose = row.owner;
  if (whose.kind === "shared") return ["shared: ", h("strong", {}, whose.shared || "?")];
  if (whose.kind === "executor") return ["QarnotExecutor: ", h("strong", {}, whose.executor || "?"), under(`all schedulers of namespace ${whose.namespace || "?"}`)];
  if (whose.kind !== "run") return [quiet("not known")];
  return [airflowLink(whose.link, whose.dag_id), under(whose.run_id), under(whose.run_state ? `run is ${whose.run_state}` : "no such run")];
}

function users(row) {
  if (row.users.length < 2) return null;
  return [h("h2", { key: "users of it" }, `DAG runs that use it (${row.user_count})`), h("ul", { key: "users", class: "plain" }, row.users.map((user) => h("li", { key: `${user.dag_id} ${user.run_id}` },
    airflowLink(user.link, `${user.dag_id} · ${user.run_id}`), quiet(` ${plural(user.unfinished, "unfinished Qarnot task")}`))))];
}

// ---- Qarnot tasks

function tasksTab(state) {
  const { detail } = state;
  if (!detail.tasks.length) return [h("p", { class: "quiet" }, "No Qarnot task has run on this pool.")];
  const isCut = detail.task_count > detail.tasks.length;
  const more = isCut ? h("p", { class: "quiet" },
    `${detail.tasks.length} of ${detail.task_count} are shown: failed, running and queued ones first, then the youngest.`) : null;
  return [outputPanel(state), more, h("div", { class: "scroll" }, h("table", { class: "cards" },
    h("caption", { class: "hidden" }, "Qarnot tasks, failed ones first"),
    h("thead", {}, h("tr", {}, ["Qarnot task", "State", "Airflow task", "Instances", "Created", "Ran for", "Output"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, ordered(detail.tasks).map((task) => taskRow(task, state)))))];
}

const ordered = (tasks) => [...tasks].sort((a, b) => Math.min(GROUPS.indexOf(a.group), 3) - Math.min(GROUPS.indexOf(b.group), 3));
const nameOf = (task) => (task.task_id ? (task.map_index === null ? task.task_id : `${task.task_id} [${task.map_index}]`) : task.name);
const cell = (name, props, ...children) => h("td", { "data-label": name, ...props }, ...children);

function taskRow(task, { view, detail: { row } }) {
  const instances = task.failed_instances ? `${task.instances}, ${task.failed_instances} failed` : String(task.instances ?? "–");
  const isOpen = view.task === task.uuid;
  const verb = isOpen ? "Hide" : "Show";
  return h("tr", { key: task.uuid, "data-task": task.uuid, class: task.group === "failed" ? "bad" : null },
    cell("Qarnot task", { class: "name" }, line(task.name), task.warm_up ? under("boots the nodes; not the DAG's work") : null,
      task.error ? h("span", { class: "under problem bad", title: task.error }, task.error) : null),
    cell("State", { class: "phase" }, badge(GROUP_KIND[task.group] || "off", h("span", { class: "word", title: task.state }, task.group)), under(task.state)),
    cell("Airflow task", { class: "for" }, task.link
      ? [airflowLink(task.link, nameOf(task)), under(task.log ? [airflowLink(task.log, "log"), " · "] : null, task.dag_id),
        row.owner.kind === "run" ? null : h("span", { class: "under", title: task.run_id }, task.run_id), airflowState(task)] : quiet("none")),
    cell("Instances", {}, instances),
    cell("Created", {}, when(task.created)),
    cell("Ran for", {}, duration(task.seconds)),
    cell("Output", {}, h("a", { href: to(view, { tab: "tasks", task: isOpen ? "" : task.uuid }),
      "aria-label": `${verb} the output of ${task.name}`, "aria-expanded": String(isOpen) }, verb)));
}

const SAME = { running: "running", queued: "queued", succeeded: "success", failed: "failed" };

/* The state in Airflow if the Qarnot task has another: it succeeds also if its Airflow task fails, because Airflow has
   taken the failure. */
function airflowState({ airflow_state: state, group }) {
  if (!state || state === SAME[group]) return null;
  const isBad = state === "failed" || state === "up_for_retry";
  return h("span", { class: isBad ? "under problem bad" : "under" }, `in Airflow: ${state.replaceAll("_", " ")}`);
}

function outputPanel({ detail, view, output }) {
  if (!view.task) return null;
  const task = detail.tasks.find((one) => one.uuid === view.task);
  const parts = output && output.task === view.task ? output : {};
  return h("section", { class: "output", key: "output", "aria-label": "Output of the Qarnot task" },
    h("div", { class: "head" }, h("h2", { tabindex: "-1" }, `Output of ${task ? task.name : view.task}`),
      h("div", { class: "buttons" }, button("copy-text", { "data-text": view.task }, "Copy the uuid"), h("a", { class: "turn", href: to(view, { task: "" }) }, "Hide"))),
    parts.error ? h("p", { class: "bad" }, parts.error) : null,
    parts.output ? ["stderr", "stdout"].map((name) => stream(name, parts.output[name])) : parts.error ? null : h("p", { class: "quiet" }, "Asking Qarnot…"));
}

function stream(name, { text, cut, read }) {
  const part = read ? ` the end of its first ${plural(read, "character")}; what follows is not read` : " its end; the start is left out";
  return h("div", { key: name }, h("h3", {}, name, cut ? quiet(part) : null),
    text ? h("pre", { class: "log", tabindex: "0", role: "region", "aria-label": name }, text) : h("p", { class: "quiet" }, "empty"));
}

// ---- nodes and events

const KINDS = {
  Submitted: "wait", PartiallyDispatched: "wait", FullyDispatched: "wait", PartiallyExecuting: "good", FullyExecuting: "good",
  Closing: "wait", PendingDelete: "wait", Closed: "off", Failure: "bad",
};
const EVENT_KIND = { lost: "bad", up: "good", down: "off", state: "busy" };

function nodesTab({ detail }) {
  return [
    h("div", { key: "nodes" }, nodes(detail)),
    h("h2", { key: "of events" }, "Events"),
    h("div", { key: "events" }, events(detail)),
    h("h2", { key: "of states" }, "States"),
    h("div", { key: "states" }, timeline(detail)),
  ];
}

function nodes({ nodes: all, row }) {
  if (!all.length) return h("p", { class: "quiet" }, isEnded(row) ? "The pool has ended." : "No node is up.");
  return h("div", { class: "scroll" }, h("table", { class: "cards" },
    h("caption", { class: "hidden" }, "Nodes that are up"),
    h("thead", {}, h("tr", {}, ["Node", "Phase", "Up for", "CPU", "Memory", "Processor"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, all.map((node, i) => h("tr", { key: node.id ?? `#${i}` },
      cell("Node", {}, String(node.id ?? "–")), cell("Phase", {}, node.phase || "–"), cell("Up for", {}, node.since ? clock(epoch(node.since)) : "–"),
      cell("CPU", {}, node.cpu_percent === null ? "–" : `${Math.round(node.cpu_percent)} %`),
      cell("Memory", {}, node.memory_mb === null ? "–" : `${Math.round(node.memory_mb)} MB`),
      cell("Processor", {}, node.model || "–"))))));
}

function events({ events: all }) {
  if (!all.length) return h("p", { class: "quiet" }, "None was observed. Only what happens while somebody has this page open is known.");
  return h("ol", { class: "timeline", tabindex: "0", "aria-label": "Events" }, all.map((event) =>
    h("li", { key: `${event.at} ${event.text}` }, when(event.at), badge(EVENT_KIND[event.kind] || "off", event.text))));
}

function timeline({ timeline: steps, row }) {
  return h("ol", { class: "timeline", tabindex: "0", "aria-label": "States" }, steps.map((step, i) => {
    const next = steps[i + 1];
    const until = next ? epoch(next.at) : null;
    return h("li", { key: `${step.at} ${step.state}` }, when(step.at), badge(KINDS[step.state] || "off", step.state),
      next || !isEnded(row) ? quiet("for ", until === null ? clock(epoch(step.at)) : duration(until - epoch(step.at))) : null);
  }));
}
