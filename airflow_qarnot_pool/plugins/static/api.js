/* Requests to the page's own server. On the tab of a DAG run everything is asked for in the name of that run, so it
   needs no right to read the connection. */

import { runOf } from "./state.js";

/* The DAG run whose tab this is, or null. */
export const run = runOf(location.search);

/* Browsers let no page of another site send this header. */
const ACTION = { "X-Qarnot-Pools": "close" };
const enc = encodeURIComponent;
/* How long an answer may take. An action takes longer, and goes on at the server. */
const READ_MS = 30000;
const ACT_MS = 120000;

const parsed = (text) => { try { return JSON.parse(text); } catch { return null; } };

async function request(path, options) {
  let response;
  let text;
  try {
    const signal = AbortSignal.timeout(options ? ACT_MS : READ_MS);
    response = await fetch(path, { headers: { Accept: "application/json" }, credentials: "same-origin", signal, ...options });
    text = await response.text();
  } catch {
    throw new Error("Airflow does not respond.");
  }
  const body = parsed(text);
  if (response.ok && !body) throw new Error("The answer is not that of the Pools page. Reload Airflow.");
  if (response.ok) return body;
  const { detail: told } = body || {};
  const parts = Array.isArray(told) ? told.map((one) => `${one.loc}: ${one.msg}`).join("; ") : told; // of a refused body
  const detail = typeof parts === "string" ? parts : `${response.status} ${response.statusText}`;
  const shown = response.status === 401 ? "You are not logged in any more. Reload Airflow to log in." : detail;
  throw Object.assign(new Error(shown), { status: response.status });
}

const query = (parts) => `?${Object.entries(parts).map(([name, value]) => `${name}=${enc(value)}`).join("&")}`;
const ofRun = run ? { run_id: run.run } : {};
const poolPath = (pool) => (run ? `api/dags/${enc(run.dag)}` : `api/connections/${enc(pool.connection)}`) + `/pools/${enc(pool.uuid)}`;
const actionPath = (row, action) => `api/connections/${enc(row.connection)}/pools/${enc(row.uuid)}/${action}`;

function post(path, body) {
  const headers = { Accept: "application/json", ...ACTION };
  if (body) headers["Content-Type"] = "application/json";
  return request(path, { method: "POST", headers, body: body ? JSON.stringify(body) : undefined });
}

/* The pools that have changed since the version *have*, with news about the *shown* ones first, and where the words of
   *search* are found in what the rows leave out. */
export function list(have, shown, search) {
  const more = search ? { have, search } : { have };
  if (run) return request(`api/dags/${enc(run.dag)}/pools` + query({ ...ofRun, ...more }));
  return request("api/pools" + query({ shown: shown.slice(0, 50).join(","), ...more }));
}
export const pool = (chosen, have) => request(poolPath(chosen) + query({ ...ofRun, have }));
export const output = (chosen, task) => request(`${poolPath(chosen)}/tasks/${enc(task)}/output` + query(ofRun));
export const history = () => request("api/history");
export const previewClose = (row) => request(actionPath(row, "close"));
export const close = (row) => post(actionPath(row, "close"));
export const closeWhenIdle = (row, wanted) => post(actionPath(row, "close-when-idle"), { wanted });
export const resize = (row, body) => post(actionPath(row, "resize"), body);
