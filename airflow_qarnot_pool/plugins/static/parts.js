/* Small pieces that the views share. */

import { airflowPath } from "./airflow.js";
import { h } from "./dom.js";
import { coarse, duration, epoch, stamp } from "./format.js";
import { isEnded, level, levelOf, wordOf } from "./rows.js";

/* ---- clocks: the only texts that change with time alone. They are filled by `tick`, not by the patch. */

const CLOCKS = {
  coarse: (seconds) => coarse(seconds),
  fine: (seconds) => duration(seconds),
};
/* The time since an instant in epoch seconds. */
export const clock = (at, style = "coarse") => h("span", { "data-clock": style, "data-at": at, opaque: true });

export function tick(root, now) {
  for (const each of root.querySelectorAll("[data-clock][data-at]")) {
    const text = CLOCKS[each.dataset.clock](now - Number(each.dataset.at));
    if (each.textContent !== text) each.textContent = text;
  }
}

/* How long from an instant to another, or to now. */
export const lasting = (from, until) => (from === null ? "–" : until === null ? clock(from) : coarse(until - from));

/* ---- texts */

export const under = (...children) => h("span", { class: "under" }, ...children);
export const quiet = (...children) => h("span", { class: "quiet" }, ...children);
/* A text on one line, whose end may be out of sight. */
export const line = (text, props = {}) => h("span", { title: text, ...props }, text);
/* In a narrow table the content of a hidden column is below that of another one. */
export const tight = (...children) => h("span", { class: "under tight" }, ...children);

export function when(iso) {
  return iso ? h("time", { datetime: iso }, stamp(epoch(iso))) : "–";
}

const isWeb = (href) => /^https?:\/\//i.test(href || "");

export function airflowLink(path, ...children) {
  const href = path ? airflowPath(path) : "";
  return isWeb(href) ? h("a", { href, "data-go": "airflow" }, ...children) : h("span", {}, ...children);
}

export function outsideLink(href, ...children) {
  if (!isWeb(href)) return null;
  return h("a", { href, "data-go": "outside", target: "_blank", rel: "noopener noreferrer" }, ...children);
}

export const button = (action, props, ...children) => h("button", { type: "button", "data-do": action, ...props }, ...children);

/* ---- states */

const KIND = { booting: "wait", ready: "good", busy: "busy", idle: "good", empty: "off", closing: "wait", closed: "off", failed: "bad" };

export const badge = (kind, ...children) => h("span", { class: `state ${kind}` }, ...children);
export const stateBadge = (row) => badge(level(row) === "bad" && !isEnded(row) ? "bad" : KIND[row.word] || "off",
  h("span", { class: "word" }, wordOf(row), row.idle_since && row.word === "idle" ? [" ", clock(epoch(row.idle_since))] : null));

const LASTING = new Set(["idle", "boot"]);

export function warningText({ kind, text, since }) {
  const ago = since && clock(epoch(since));
  return [h("span", { class: "text" }, text), ago ? h("span", { class: "for" }, LASTING.has(kind) ? [" for ", ago] : [" · ", ago, " ago"]) : null];
}

export function warningList(row) {
  if (!row.warnings.length) return null;
  return h("ul", { key: "warnings", class: "warnings" }, row.warnings.map((warning) => h("li", { class: levelOf(warning), key: warning.kind }, ...warningText(warning))));
}

/* ---- Qarnot tasks */

export const GROUPS = ["failed", "running", "queued", "succeeded", "cancelled"];
export const GROUP_KIND = { failed: "bad", running: "busy", queued: "wait", succeeded: "good", cancelled: "off" };
const WORDS = { succeeded: "done" };

export const countsText = (tasks) => GROUPS.filter((name) => tasks[name]).map((name) => `${tasks[name]} ${WORDS[name] || name}`).join(", ") || "none";

export function bar(tasks) {
  const parts = GROUPS.filter((name) => tasks[name]);
  if (!parts.length) return null;
  const segment = (name) => h("i", { key: name, class: GROUP_KIND[name], style: { "flex-grow": String(tasks[name]) } });
  return h("span", { class: "bar", "aria-hidden": "true" }, parts.map(segment));
}

export function taskCounts(tasks) {
  if (!tasks) return quiet("…");
  return h("span", { class: "counts" }, line(countsText(tasks)), bar(tasks));
}
