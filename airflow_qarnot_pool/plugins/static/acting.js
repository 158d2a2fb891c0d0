/* What people do to pools, each in a dialog that first says what it does. */

import * as api from "./api.js";
import { h, patch } from "./dom.js";
import { euros, plural } from "./format.js";
import { airflowLink, button, quiet } from "./parts.js";

const AT_ONCE = 4;
const MAX_LISTED = 100;

const dialog = document.getElementById("dialog");
let asked = 0; // counts dialogs, so that a late answer for an earlier one is dropped
let done = () => {};
let confirmed = () => {};

/* Show *content* under *title*, with a button *yes* if there is something to do. */
function show(title, content, { yes, isReady = true, no = "Cancel", kind = "danger" }) {
  patch(dialog, [
    h("h2", { id: "dialog-title" }, title),
    h("form", { method: "dialog", id: "dialog-form" }, content),
    h("div", { class: "actions" },
      button("dialog-no", { key: "no" }, no),
      yes ? button("dialog-yes", { key: "yes", type: "submit", form: "dialog-form", class: kind, disabled: !isReady }, yes) : null),
  ]);
  if (!dialog.open) dialog.showModal();
}

/* Begin a dialog. Returns a function that tells whether it is still the one that is open. */
function open(then) {
  done = then;
  asked += 1;
  const own = asked;
  return () => own === asked && dialog.open;
}

export function answer(isYes) {
  if (isYes) confirmed();
  else dialog.close();
}

dialog.addEventListener("close", () => {
  if (dialog.open) return; // another one has been opened meanwhile
  asked += 1;
  confirmed = () => {};
  patch(dialog, []);
});
dialog.addEventListener("submit", (event) => { event.preventDefault(); });

const failure = (text) => (text ? h("p", { class: "bad", role: "alert", key: "failure" }, text) : null);

// ---- close one

/* Say what closing *row* does, and close it if the user says so. *then* is called after it. */
export async function close(row, then) {
  const isMine = open(then);
  let preview = null;
  let problem = null;
  let isBusy = false;
  const draw = () => show("Close this pool?", [
    h("p", {}, h("strong", {}, row.name)),
    preview ? consequences(preview, (row.figures || {}).per_hour) : problem ? null : h("p", { class: "quiet" }, "Asking Qarnot what is on it…"),
    failure(problem),
  ], { yes: "Close the pool", isReady: Boolean(preview && preview.closable) && !isBusy, no: "Keep it" });
  confirmed = async () => {
    if (isBusy) return;
    isBusy = true;
    problem = null;
    draw();
    try {
      await api.close(row);
      if (isMine()) dialog.close();
      done();
    } catch (error) {
      if (!isMine()) return;
      isBusy = false;
      problem = error.message;
      draw();
    }
  };
  draw();
  try {
    preview = await api.previewClose(row);
  } catch (error) {
    problem = error.message;
  }
  if (isMine()) draw();
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
      quiet(` ${user.run_state || "no such run"}, ${user.unfinished} unfinished${user.holds ? ", has it open" : ""}`))),
      preview.user_count > preview.users.length ? h("li", {}, quiet(`and ${preview.user_count - preview.users.length} more`)) : null)] : null);
}

// ---- close many

const isRefused = (result) => Boolean(result) && result.startsWith("not closed");

/* Close *rows* one by one, a few at a time, and show how each went. */
export function closeAll(rows, then) {
  const isMine = open(then);
  const results = new Map();
  let isBusy = false;
  const left = rows.reduce((sum, row) => sum + (row.tasks ? row.tasks.running + row.tasks.queued : 0), 0);
  const unknown = rows.filter((row) => !row.tasks).length;
  const rate = rows.reduce((sum, row) => sum + ((row.figures || {}).per_hour || 0), 0);
  const slots = rows.reduce((sum, row) => sum + row.ready, 0);
  const counted = left
    ? `${plural(left, "unfinished Qarnot task")} ${left === 1 ? "is" : "are"} cancelled. The Airflow tasks fail or are retried.`
    : unknown ? "" : "Nothing runs on them.";
  const lost = counted + (unknown ? ` The Qarnot tasks of ${plural(unknown, "pool")} are not counted yet.` : "");
  const isOver = () => results.size === rows.length && [...results.values()].every((result) => result !== "…");
  const listed = () => [...rows.filter((row) => isRefused(results.get(row.uuid))), ...rows.filter((row) => !isRefused(results.get(row.uuid)))].slice(0, MAX_LISTED);
  const draw = () => show(`Close ${plural(rows.length, "pool")}?`, [
    h("p", {}, `${plural(slots, "slot")} up${rate ? `, ${euros(rate)} an hour` : ""}. ${lost}`),
    results.size ? h("p", {}, `${[...results.values()].filter((result) => result !== "…").length} of ${rows.length} done`) : null,
    h("ul", { class: "plain results", tabindex: "0", "aria-label": "Pools" }, listed().map((row) => h("li", { key: row.uuid },
      h("strong", {}, row.name),
      quiet(` ${row.connection || ""}`),
      results.has(row.uuid) ? h("span", { class: "result" }, ` ${results.get(row.uuid)}`) : null))),
  ], isOver() ? { no: "Done" } : { yes: "Close them", isReady: !isBusy, no: isBusy ? "Hide" : "Keep them" });
  confirmed = async () => {
    if (isBusy) return;
    isBusy = true;
    const queue = [...rows];
    const work = async () => {
      for (let row = queue.shift(); row; row = queue.shift()) {
        results.set(row.uuid, "…");
        if (isMine()) draw();
        try {
          const body = await api.close(row);
          results.set(row.uuid, body.already ? "was closing already" : "closing");
        } catch (error) {
          results.set(row.uuid, `not closed: ${error.message}`);
        }
        if (isMine()) draw();
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    then(rows.filter((row) => !isRefused(results.get(row.uuid))));
  };
  draw();
}

// ---- resize, and release of idle nodes

/* Ask for another number of slots of *row*, and whether idle nodes are released. */
export function resize(row, then) {
  const isMine = open(then);
  let problem = null;
  let isBusy = false;
  const slots = { type: "number", min: "1", max: "5000", required: true };
  const idle = { type: "number", min: "60", max: "86400", required: true };
  const draw = () => show("Resize this pool", [
    h("p", {}, h("strong", {}, row.name), quiet(` has ${row.ready} of ${row.wanted} slots`)),
    h("p", {}, h("label", {}, "Slots ", h("input", { ...slots, id: "resize-slots", value: String(Math.max(1, row.wanted)) }))),
    h("p", {}, h("label", {}, h("input", { type: "checkbox", id: "resize-release" }), " Release idle nodes"),
      h("label", {}, " after ", h("input", { ...idle, id: "resize-idle", value: "300", "aria-label": "Seconds without work" }), " seconds without work")),
    h("p", { class: "quiet" }, "Released nodes cost nothing. The pool stays open, without nodes, until its DAG closes it, and boots nodes again for new work."),
    failure(problem),
  ], { yes: "Resize", isReady: !isBusy, kind: null });
  confirmed = async () => {
    const [wanted, pause, release] = ["resize-slots", "resize-idle", "resize-release"].map((id) => document.getElementById(id));
    if (isBusy || !wanted.reportValidity() || (release.checked && !pause.reportValidity())) return;
    isBusy = true;
    problem = null;
    draw();
    try {
      await api.resize(row, { slots: Number(wanted.value), idle_seconds: release.checked ? Number(pause.value) : null });
      if (isMine()) dialog.close();
      done();
    } catch (error) {
      if (!isMine()) return;
      isBusy = false;
      problem = error.message;
      draw();
    }
  };
  draw();
}
