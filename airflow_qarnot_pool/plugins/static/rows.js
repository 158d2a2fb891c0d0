/* Pure functions on the rows of pools: merge, filter, sort, group, add up, export. */

import { csv, epoch } from "./format.js";

export const NOTHING_WRONG = 99;
const URGENT = new Set(["failed", "nodes", "idle", "owner", "budget"]);
const RECENT_SECONDS = 3600;

export const isEnded = (row) => row.phase === "closed" || row.phase === "failed";
export const isWrong = (row) => row.rank < NOTHING_WRONG;
/* "bad" needs somebody now, "warn" should be looked at, "" is nothing wrong. */
export const level = (row) => (!isWrong(row) ? "" : URGENT.has(row.severity) ? "bad" : "warn");
export const levelOf = (warning) => (URGENT.has(warning.kind) ? "bad" : "warn");

/* On the tab of a DAG run these are its share of a pool that other runs use, too. */
export const figuresOf = (row) => (row.mine ? row.mine.figures : row.figures);
export const tasksOf = (row) => (row.mine ? row.mine.tasks : row.tasks);
export const unfinished = (row) => (row.tasks ? row.tasks.running + row.tasks.queued : 0);

/* The plain word for a state, with its numbers. */
export function wordOf(row) {
  if (row.word === "busy") return `busy ${row.busy} of ${row.ready}`;
  if (row.word === "booting") return `booting ${row.ready} of ${row.wanted}`;
  return row.word === "empty" ? "no nodes" : row.word;
}

export const PROBLEMS = {
  failed: "failed", nodes: "lost nodes", idle: "billed and idle", owner: "run is gone", boot: "stuck booting",
  budget: "over budget", errors: "errors", state: "unknown state", tasks: "failed tasks",
};
const has = (kind) => (row) => row.warnings.some((warning) => warning.kind === kind);
export const SHOW = {
  current: ["Open, or just ended", (row, now) => !isEnded(row) || isWrong(row) || now - epoch(row.ended) < RECENT_SECONDS],
  wrong: ["Need attention", isWrong],
  open: ["Open", (row) => !isEnded(row)],
  ended: ["Ended", isEnded],
  all: ["All", () => true],
  ...Object.fromEntries(Object.entries(PROBLEMS).map(([kind, text]) => [kind, [text[0].toUpperCase() + text.slice(1), (row) => isWrong(row) && has(kind)(row)]])),
};

const ownerOf = ({ owner }) => ({ shared: `shared: ${owner.shared}`, executor: `QarnotExecutor: ${owner.executor}`, run: owner.run_id }[owner.kind] || "not known");
/* The values of a row by which it is filtered and grouped. */
export const FACETS = {
  dag: ["DAG", (row) => row.dag_ids],
  state: ["State", (row) => [row.word === "empty" ? "no nodes" : row.word]],
  connection: ["Connection", (row) => (row.connection ? [row.connection] : [])],
  tag: ["Tag", (row) => row.tags],
  owner: ["Owner", (row) => [ownerOf(row)]],
};
export const GROUPS = {
  ...FACETS,
  problem: ["Problem", (row) => [isWrong(row) ? PROBLEMS[row.severity] || row.severity : "nothing wrong"]],
};

const cost = (row) => (figuresOf(row) || {}).euros ?? null;
const SORTS = {
  name: (row) => row.name.toLowerCase(),
  state: (row) => row.word,
  age: (row) => (row.created ? -epoch(row.created) : null),
  slots: (row) => row.ready,
  tasks: (row) => (tasksOf(row) ? tasksOf(row).running + tasksOf(row).queued : null),
  cost,
  carbon: (row) => (figuresOf(row) || {}).carbon_g ?? null,
};

/* ---- the list of the server */

/* The order in which people should look at them. */
function byUrgency(a, b) {
  if (a.rank !== b.rank) return a.rank - b.rank;
  if (isEnded(a) !== isEnded(b)) return isEnded(a) ? 1 : -1;
  if (a.created !== b.created) return (a.created || "") < (b.created || "") ? 1 : -1;
  return a.uuid < b.uuid ? -1 : 1;
}

/* The rows after an answer of the server, most urgent first: the same array if nothing has changed. */
export function merged(rows, body) {
  if (body.full) return [...body.pools].sort(byUrgency);
  const gone = new Set([...body.gone, ...body.pools.map((row) => row.uuid)]);
  if (!gone.size) return rows;
  return [...rows.filter((row) => !gone.has(row.uuid)), ...body.pools].sort(byUrgency);
}

/* ---- filters and order */

const texts = new WeakMap();
/* Everything of a row that a search finds. The server searches what the row leaves out. */
function textOf(row) {
  if (!texts.has(row)) {
    const { owner } = row;
    const words = [row.name, row.shortname, row.uuid, row.state, row.word, row.connection, owner.dag_id, owner.run_id, owner.task_id, owner.shared,
      owner.kind === "executor" && ownerOf(row),
      ...row.tags, ...row.dag_ids, ...row.task_ids, ...row.users.flatMap((user) => [user.dag_id, user.run_id]),
      ...[...row.warnings, ...row.errors].map((one) => one.text),
      row.closes_when_idle && "closes when idle", row.severity && PROBLEMS[row.severity], row.closed_by && row.closed_by.user];
    texts.set(row, words.filter(Boolean).join("\n").toLowerCase());
  }
  return texts.get(row);
}

/* Whether the server must be asked before the search is complete. */
export const isPartial = (rows, search, found) => wordsOf(search).length > 0 && found.q !== search && rows.some((row) => row.has_more);

const showOf = (view, isRun) => SHOW[view.show] || (isRun ? SHOW.all : SHOW.current);

const wordsOf = (search) => (search || "").toLowerCase().split(/\s+/).filter(Boolean);

/* The rows that *view* asks for, in its order. *found* is {q, words}: the uuids that the server has found for the search
   *q*, in a set for each word. */
export function chosen(rows, view, now, isRun, found) {
  const words = wordsOf(view.q);
  const [, keep] = showOf(view, isRun);
  const facets = Object.entries(FACETS).filter(([name]) => view[name]);
  const kept = rows.filter((row) => keep(row, now)
    && facets.every(([name, [, values]]) => values(row).includes(view[name]))
    && words.every((word) => textOf(row).includes(word) || (row.has_more && Boolean(found.words.get(word)?.has(row.uuid)))));
  return sorted(kept, view.sort || "");
}

/* "cost" is ascending, "-cost" descending. Unknown values come last both ways. */
function sorted(rows, sort) {
  const value = SORTS[sort.replace(/^-/, "")];
  if (!value) return rows;
  const sign = sort.startsWith("-") ? -1 : 1;
  const keys = new Map(rows.map((row) => [row, value(row)]));
  return [...rows].sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return x < y ? -sign : x > y ? sign : 0;
  });
}

/* [[name, rows]], in the order of the first row of each. A row with several values is in several groups. */
export function grouped(rows, by) {
  const [, values] = GROUPS[by] || [];
  if (!values) return [[null, rows]];
  const groups = new Map();
  for (const row of rows) {
    const names = values(row);
    for (const name of names.length ? names : ["none"]) {
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(row);
    }
  }
  return [...groups];
}

const counted = new WeakMap();
/* The values of a facet in *rows*, with their numbers, the most frequent first. */
export function choices(rows, facet) {
  if (!counted.has(rows)) counted.set(rows, {});
  counted.get(rows)[facet] ??= count(rows, facet);
  return counted.get(rows)[facet];
}

function count(rows, facet) {
  const counts = new Map();
  for (const row of rows) for (const value of FACETS[facet][1](row)) counts.set(value, (counts.get(value) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 500);
}

/* ---- sums */

/* {value, unknown}: the sum of what is known, and how many are not. */
export function sum(rows, read) {
  let [value, unknown] = [0, 0];
  for (const row of rows) {
    const one = read(row);
    if (one === null || one === undefined) unknown += 1;
    else value += one;
  }
  return { value, unknown };
}
export const sumOf = (rows, name) => sum(rows, (row) => (figuresOf(row) || {})[name]);
export const sumOfPools = (rows, name) => sum(rows, (row) => (row.figures || {})[name]);

/* The earliest creation, or null. */
export const since = (rows) => rows.reduce((first, row) => (row.created && (!first || row.created < first) ? row.created : first), null);

/* ---- bulk selections and exports */

export const BULK = {
  idle: ["All idle for 30 min", (row, now) => row.idle_since !== null && now - epoch(row.idle_since) >= 1800],
  over: ["All whose DAG run is over", (row) => Boolean(row.owner.over)],
  matching: ["All that match", () => true],
};

const COLUMNS = {
  connection: (row) => row.connection,
  uuid: (row) => row.uuid,
  name: (row) => row.name,
  shortname: (row) => row.shortname,
  state: (row) => row.state,
  word: (row) => row.word,
  problem: (row) => row.severity,
  warnings: (row) => row.warnings.map((warning) => warning.text).join("; "),
  errors: (row) => row.errors.map((error) => error.text).join("; "),
  slots_ready: (row) => row.ready,
  slots_wanted: (row) => row.wanted,
  slots_busy: (row) => row.busy,
  tasks_queued: (row) => tasksOf(row) && tasksOf(row).queued,
  tasks_running: (row) => tasksOf(row) && tasksOf(row).running,
  tasks_succeeded: (row) => tasksOf(row) && tasksOf(row).succeeded,
  tasks_failed: (row) => tasksOf(row) && tasksOf(row).failed,
  tasks_cancelled: (row) => tasksOf(row) && tasksOf(row).cancelled,
  dag_id: (row) => row.owner.dag_id,
  run_id: (row) => row.owner.run_id,
  run_state: (row) => row.owner.run_state,
  shared: (row) => row.owner.shared,
  executor: (row) => row.owner.executor,
  created: (row) => row.created,
  ended: (row) => row.ended,
  closed_by: (row) => row.closed_by && row.closed_by.user,
  closes_when_idle: (row) => (row.closes_when_idle ? "yes" : ""),
  euros: cost,
  euros_per_hour: (row) => (row.figures || {}).per_hour,
  energy_wh: (row) => (figuresOf(row) || {}).energy_wh,
  carbon_g: (row) => (figuresOf(row) || {}).carbon_g,
  saved_g: (row) => (figuresOf(row) || {}).saved_g,
  tags: (row) => row.tags.join("; "),
};
export const asCsv = (rows) => csv([Object.keys(COLUMNS), ...rows.map((row) => Object.values(COLUMNS).map((value) => value(row)))]);
export const asJson = (rows) => JSON.stringify(rows, null, 2);
