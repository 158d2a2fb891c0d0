/* What people do to pools, each in a dialog that first says what it does. */

import * as api from "./api.js";
import { h, patch } from "./dom.js";
import { euros, plural } from "./format.js";
import { airflowLink, button, quiet } from "./parts.js";
import { sum } from "./rows.js";

const AT_ONCE = 4;
const MAX_LISTED = 100;

const dialog = document.getElementById("dialog");
let asked = 0; // counts dialogs, so that a late answer for an earlier one is dropped
let confirmed = () => {};
let chosenOther = () => {};

/* Show *content* under *title*, with a button *yes* if there is something to do, and *other* for another way to do it. */
function show(title, content, { yes, other, isReady = true, no = "Cancel", kind = "danger" }) {
  patch(dialog, [
    h("h2", { id: "dialog-title" }, title),
    h("form", { method: "dialog", id: "dialog-form" }, content),
    h("div", { class: "actions" },
      button("dialog-no", { key: "no" }, no),
      other ? button("dialog-other", { key: "other", disabled: !isReady }, other) : null,
      yes ? button("dialog-yes", { key: "yes", type: "submit", form: "dialog-form", class: kind, disabled: !isReady }, yes) : null),
  ]);
  if (!dialog.open) dialog.showModal();
}

/* Begin a dialog. Returns a function that tells whether it is still the one that is open. */
function open() {
  asked += 1;
  const own = asked;
  return () => own === asked && dialog.open;
}

export function answer(which) {
  if (which === "yes") confirmed();
  else if (which === "other") chosenOther();
  else dialog.close();
}

dialog.addEventListener("close", () => {
  if (dialog.open) return; // another one has been opened meanwhile
  asked += 1;
  confirmed = () => {};
  chosenOther = () => {};
  patch(dialog, []);
});
dialog.addEventListener("submit", (event) => { event.preventDefault(); });

const failure = (text) => (text ? h("p", { class: "bad", role: "alert", key: "failure" }, text) : null);

// ---- close one

const IDLE = "Close when idle cancels nothing. Nodes without work go after 5 minutes at most, and the reaper closes the pool once it "
  + "has had no work for 5 minutes. Without a reaper it stays open, without nodes";
const isOfExecutor = (row) => row.owner.kind === "executor";
/* Until when a pool without nodes stays open. */
const untilClosed = (row) => (isOfExecutor(row) ? "." : ", until its DAG closes it.");
const KEPT = "The reaper closes this pool once it has had no work for 5 minutes. If it does not, idle nodes still go.";

/* Say what closing *row* does, and close it, now or when it is idle, if the user says so. *then* is called after it, and
   *tell* with a failure that comes once the dialog is gone. */
export async function close(row, then, tell) {
  const isMine = open();
  let preview = null;
  let problem = null;
  let isBusy = false;
  const draw = () => show("Close this pool?", [
    h("p", {}, h("strong", {}, row.name)),
    preview ? consequences(preview, (row.figures || {}).per_hour) : problem ? null : h("p", { class: "quiet" }, "Asking Qarnot what is on it…"),
    row.idle_closable ? h("p", { key: "idle", class: "quiet" }, row.closes_when_idle ? KEPT : IDLE + untilClosed(row)) : null,
    failure(problem),
  ], {
    yes: "Close the pool",
    other: !row.idle_closable ? null : row.closes_when_idle ? "Do not close when idle" : "Close when idle",
    isReady: Boolean(preview && preview.closable) && !isBusy,
    no: isBusy ? "Hide" : "Keep it",
  });
  const act = async (send, failed) => {
    if (isBusy) return;
    isBusy = true;
    problem = null;
    draw();
    try {
      await send();
      if (isMine()) dialog.close();
      then();
    } catch (error) {
      if (!isMine()) { tell(`${row.name} ${failed}: ${error.message}`); return; }
      isBusy = false;
      problem = error.message;
      draw();
    }
  };
  confirmed = () => act(() => api.close(row), "is not closed");
  chosenOther = () => act(() => api.closeWhenIdle(row, !row.closes_when_idle), "is not changed");
  draw();
  try {
    preview = await api.previewClose(row);
  } catch (error) {
    problem = error.message;
  }
  if (isMine()) draw();
}

function tasksOfUser({ tasks, unfinished }) {
  if (!tasks || !tasks.length) return "";
  return `: ${tasks.join(", ")}${unfinished > tasks.length ? ", …" : ""}`;
}

function consequences(preview, rate) {
  const facts = [
    preview.text,
    `${plural(preview.ready, "slot")} up${rate ? `, ${euros(rate)} an hour` : ""}; ${plural(preview.running, "instance")} running, ${preview.queued} queued.`,
    preview.closable ? null : `The pool is ${preview.word}.`,
  ];
  return h("div", { key: "consequences" },
    facts.filter(Boolean).map((text, i) => h("p", { key: i }, text)),
    preview.users.length ? [h("p", {}, "Used by:"), h("ul", { class: "plain" }, preview.users.map((user) => h("li", { key: `${user.dag_id} ${user.run_id}` },
      airflowLink(user.link, `${user.dag_id} · ${user.run_id}`),
      quiet(` ${user.run_state || "no such run"}, ${user.unfinished} unfinished${user.holds ? ", has it open" : ""}${tasksOfUser(user)}`))),
      preview.user_count > preview.users.length ? h("li", {}, quiet(`and ${preview.user_count - preview.users.length} more`)) : null)] : null);
}

// ---- close many

const isRefused = (result) => Boolean(result) && result.startsWith("not closed");

/* What *rows* cost together: a lower bound if some of it is unknown. */
function rateOf(rows) {
  const { value, unknown } = sum(rows, (row) => (row.figures || {}).per_hour);
  if (unknown === rows.length) return ", euros an hour not known";
  return value || unknown ? `, ${unknown ? "≥ " : ""}${euros(value)} an hour` : "";
}

/* Close *rows*, now or when they are idle, one by one, a few at a time, and show how each went. */
export function closeAll(rows, then, tell) {
  const isMine = open();
  const results = new Map();
  let isBusy = false;
  const { value: left, unknown } = sum(rows, (row) => row.tasks && row.tasks.running + row.tasks.queued);
  const slots = sum(rows, (row) => row.ready).value;
  const counted = left
    ? `${plural(left, "unfinished Qarnot task")} ${left === 1 ? "is" : "are"} cancelled. The Airflow tasks fail or are retried.`
    : unknown ? "" : "Nothing runs on them.";
  const lost = counted + (unknown ? ` The Qarnot tasks of ${plural(unknown, "pool")} are not counted yet.` : "");
  const isOver = () => results.size === rows.length && [...results.values()].every((result) => result !== "…");
  const listed = () => [...rows.filter((row) => isRefused(results.get(row.uuid))), ...rows.filter((row) => !isRefused(results.get(row.uuid)))].slice(0, MAX_LISTED);
  const draw = () => show(`Close ${plural(rows.length, "pool")}?`, [
    h("p", {}, `${plural(slots, "slot")} up${rateOf(rows)}. ${lost}`),
    results.size ? h("p", {}, `${[...results.values()].filter((result) => result !== "…").length} of ${rows.length} done`) : null,
    h("ul", { class: "plain results", tabindex: "0", "aria-label": "Pools" }, listed().map((row) => h("li", { key: row.uuid },
      h("strong", {}, row.name),
      quiet(` ${row.connection || ""}`),
      results.has(row.uuid) ? h("span", { class: "result" }, ` ${results.get(row.uuid)}`) : null))),
  ], isOver() ? { no: "Done" } : { yes: "Close them", other: "Close them when idle", isReady: !isBusy, no: isBusy ? "Hide" : "Keep them" });
  const act = async (send, told) => {
    if (isBusy) return;
    isBusy = true;
    const queue = [...rows];
    const work = async () => {
      for (let row = queue.shift(); row; row = queue.shift()) {
        results.set(row.uuid, "…");
        if (isMine()) draw();
        try {
          results.set(row.uuid, told(await send(row)));
        } catch (error) {
          results.set(row.uuid, `not closed: ${error.message}`);
        }
        if (isMine()) draw();
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    const refused = rows.filter((row) => isRefused(results.get(row.uuid)));
    if (refused.length && !isMine()) tell(`${plural(refused.length, "pool")} of ${rows.length}: ${results.get(refused[0].uuid)}`);
    then(rows.filter((row) => !refused.includes(row)));
  };
  confirmed = () => act(api.close, (body) => (body.already ? "was closing already" : "closing"));
  chosenOther = () => act((row) => api.closeWhenIdle(row, true), () => "closes when idle");
  draw();
}

// ---- resize, and release of idle nodes

/* Ask for another number of slots of *row*, and whether idle nodes are released. */
export function resize(row, then, tell) {
  const isMine = open();
  let problem = null;
  let isBusy = false;
  const most = row.max_slots ?? row.wanted;
  const slots = { type: "number", min: "1", max: "5000", required: true };
  const idle = { type: "number", min: "60", max: "86400", required: true };
  const draw = () => show("Resize this pool", [
    h("p", {}, h("strong", {}, row.name), quiet(` has ${row.ready} of ${row.wanted} slots`)),
    h("p", {}, h("label", {}, row.follows_load ? "Slots at most " : "Slots ", h("input", { ...slots, id: "resize-slots", value: String(Math.max(1, most)) }))),
    h("p", {}, h("label", {}, h("input", { type: "checkbox", id: "resize-release" }), " Release idle nodes"),
      h("label", {}, " after ", h("input", { ...idle, id: "resize-idle", value: "300", "aria-label": "Seconds without work" }), " seconds without work")),
    h("p", { class: "quiet" }, `Released nodes cost nothing, and the pool boots nodes again for new work. It stays open, without nodes${untilClosed(row)}`),
    isOfExecutor(row) ? h("p", { class: "quiet" }, "QarnotExecutor still submits as many tasks as [qarnot_executor] says. Its next pool has the slots of that section.") : null,
    failure(problem),
  ], { yes: "Resize", isReady: !isBusy, no: isBusy ? "Hide" : "Cancel", kind: null });
  confirmed = async () => {
    const [wanted, pause, release] = ["resize-slots", "resize-idle", "resize-release"].map((id) => document.getElementById(id));
    if (isBusy || !wanted.reportValidity() || (release.checked && !pause.reportValidity())) return;
    isBusy = true;
    problem = null;
    draw();
    try {
      await api.resize(row, { slots: Number(wanted.value), idle_seconds: release.checked ? Number(pause.value) : null });
      if (isMine()) dialog.close();
      then();
    } catch (error) {
      if (!isMine()) { tell(`${row.name} is not resized: ${error.message}`); return; }
      isBusy = false;
      problem = error.message;
      draw();
    }
  };
  draw();
}
