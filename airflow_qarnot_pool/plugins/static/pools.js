/* The Pools page: requests the cached data from its own server, and shows it. Names from Qarnot or a DAG reach the
   page as text only. */
"use strict";
(() => {
  const PER_PAGE = 25;
  const ACTION = { "X-Qarnot-Pools": "close" };
  const RECENT_SECONDS = 3600;
  const EAGER_MS = [100, 150, 250, 400, 600]; // while newer data is on its way
  const query = runOfQuery(location.search);
  const airflow = new URL("../", location.href);
  const view = document.getElementById("view");
  const dialog = document.getElementById("closing");
  const state = { list: null, pool: null, problem: null, search: "", filter: "current", page: 0, sort: "", down: true };
  let timer = 0;
  let generation = 0;
  let receivedAt = 0;
  let eager = 0;

  // ---- small helpers

  function el(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  }

  /* Airflow 3.1 inserts a run's id without encoding. So a "+" is no space, and the id is everything after "run_id=". */
  function runOfQuery(search) {
    const match = /^\?dag_id=([^&]*)&run_id=(.*)$/s.exec(search);
    if (!match) return null;
    const plain = (text) => { try { return decodeURIComponent(text); } catch { return text; } };
    return { dag: plain(match[1]), run: plain(match[2]) };
  }

  function opened() {
    const match = /^#pool=([^/]+)\/(.+)$/.exec(location.hash);
    return match ? { connection: decodeURIComponent(match[1]), uuid: decodeURIComponent(match[2]) } : null;
  }

  function hashOf(row) {
    return `#pool=${encodeURIComponent(row.connection)}/${encodeURIComponent(row.uuid)}`;
  }

  /* Long names break after a dot or the like. */
  function breakable(name) {
    return name.split(/(?<=[._/-])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
  }

  function duration(seconds) {
    if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
    if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  }

  const serverNow = () => (state.list || state.pool || { now: Date.now() / 1000 }).now;
  const since = (iso, until) => (iso ? (until ? Date.parse(until) / 1000 : serverNow()) - Date.parse(iso) / 1000 : null);

  function when(iso) {
    if (!iso) return "–";
    return el("time", { datetime: iso, title: iso }, new Date(iso).toLocaleString());
  }

  function euros(value) {
    if (value === null || value === undefined) return "–";
    const digits = value !== 0 && Math.abs(value) < 1 ? 4 : 2;
    return new Intl.NumberFormat(undefined, { style: "currency", currency: "EUR", minimumFractionDigits: 2, maximumFractionDigits: digits }).format(value);
  }

  function scaled(value, small, large) {
    if (value === null || value === undefined) return "–";
    if (value > 0 && value < 0.01) return `< 0.01 ${small}`;
    const [number, unit] = Math.abs(value) >= 1000 ? [value / 1000, large] : [value, small];
    return `${new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 }).format(number)} ${unit}`;
  }
  const whole = (value) => new Intl.NumberFormat().format(value);
  const energy = (value) => scaled(value, "Wh", "kWh");
  const grams = (value) => scaled(value, "g", "kg");

  // ---- links: the frame may not navigate the page around it, but a link in that page may

  function framed() {
    try { return window.parent !== window && Boolean(window.parent.document.body); } catch { return false; }
  }

  function go(event) {
    const link = event.currentTarget;
    if (!framed() || event.defaultPrevented || (event.button && event.button !== 1)) return;
    event.preventDefault();
    const outer = window.parent.document;
    const copy = outer.createElement("a");
    copy.href = link.href;
    if (link.dataset.outside || event.ctrlKey || event.metaKey || event.shiftKey || event.button === 1) {
      copy.target = "_blank";
      copy.rel = "noopener noreferrer";
    }
    outer.body.append(copy);
    copy.click();
    copy.remove();
  }

  function airflowLink(path, ...children) {
    if (!path) return el("span", {}, ...children);
    const href = new URL(path, airflow).href;
    return el("a", { href, onclick: go, onauxclick: go, "data-key": `go:${path}` }, ...children);
  }

  function outsideLink(href, ...children) {
    if (!/^https?:\/\//i.test(href || "")) return null;
    return el("a", { href, onclick: go, onauxclick: go, "data-outside": "1", target: "_blank", rel: "noopener noreferrer", "data-key": `out:${href}` }, ...children);
  }

  // ---- requests to the server

  async function request(path, options) {
    const response = await fetch(path, { headers: { Accept: "application/json" }, credentials: "same-origin", ...options });
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    const detail = typeof body.detail === "string" ? body.detail : `${response.status} ${response.statusText}`;
    const text = response.status === 401 ? "You are not logged in any more. Reload Airflow to log in." : detail;
    throw Object.assign(new Error(text), { status: response.status });
  }

  function listPath() {
    const have = encodeURIComponent((state.list || {}).version || "");
    if (query) return `api/dags/${encodeURIComponent(query.dag)}/pools?run_id=${encodeURIComponent(query.run)}&have=${have}`;
    const shown = [...view.querySelectorAll("tr[data-uuid]")].map((row) => row.dataset.uuid);
    return `api/pools?shown=${shown.map(encodeURIComponent).join(",")}&have=${have}`;
  }

  function poolPath(chosen) {
    const pool = `connections/${encodeURIComponent(chosen.connection)}/pools/${encodeURIComponent(chosen.uuid)}`;
    const have = encodeURIComponent((state.pool || {}).version || "");
    if (query) return `api/dags/${encodeURIComponent(query.dag)}/pools/${encodeURIComponent(chosen.uuid)}?run_id=${encodeURIComponent(query.run)}&have=${have}`;
    return `api/${pool}?have=${have}`;
  }

  async function refresh() {
    clearTimeout(timer);
    const own = ++generation;
    const chosen = opened();
    let wait = 1000 * ((state.list || {}).every || 5);
    try {
      const body = await request(chosen ? poolPath(chosen) : listPath());
      if (own !== generation) return;
      state.problem = null;
      if (chosen && body.unchanged) body.pool = state.pool.pool;
      if (!chosen && !body.full) {
        const newer = new Map(body.pools.map((row) => [row.uuid, row]));
        const kept = state.list.pools.filter((row) => !newer.has(row.uuid) && !body.gone.includes(row.uuid));
        body.pools = [...newer.values(), ...kept].sort((a, b) => a.rank - b.rank);
      }
      state[chosen ? "pool" : "list"] = body;
      receivedAt = Date.now();
      const refreshing = chosen ? body.refreshing : body.refreshing;
      eager = refreshing ? eager + 1 : 0;
      if (refreshing) wait = EAGER_MS[Math.min(eager, EAGER_MS.length) - 1];
    } catch (error) {
      if (own !== generation) return;
      state.problem = error;
    }
    render();
    if (!document.hidden) timer = setTimeout(refresh, wait);
  }

  // ---- showing

  function render() {
    const active = document.activeElement;
    const key = active && active.dataset ? active.dataset.key : null;
    const caret = active && active.tagName === "INPUT" ? active.selectionStart : null;
    const chosen = opened();
    document.getElementById("main").setAttribute("aria-busy", String(!(chosen ? state.pool : state.list) && !state.problem));
    document.getElementById("banners").replaceChildren(...banners(chosen));
    view.replaceChildren(...(chosen ? poolView(chosen) : listView()).filter(Boolean));
    status();
    if (key) {
      const redrawn = [...document.querySelectorAll("[data-key]")].find((element) => element.dataset.key === key);
      if (redrawn) {
        redrawn.focus({ preventScroll: true });
        if (caret !== null && redrawn.setSelectionRange) redrawn.setSelectionRange(caret, caret);
      }
    }
  }

  function banners(chosen) {
    const shown = [];
    if (state.problem) shown.push(el("div", { class: "banner" }, state.problem.message || "Airflow does not respond."));
    const entries = chosen ? (state.pool ? [{ id: chosen.connection, ...state.pool }] : []) : (state.list || { connections: [] }).connections;
    for (const entry of entries) {
      if (!entry.error) continue;
      const stale = entry.age === null ? "" : ` The data shown is ${duration(entry.age)} old.`;
      shown.push(el("div", { class: "banner" }, el("strong", {}, `Connection ${entry.id}: `), `${entry.error}${stale}`));
    }
    return shown;
  }

  function status() {
    const shown = document.getElementById("status");
    const entries = opened() ? (state.pool ? [state.pool] : []) : (state.list || { connections: [] }).connections;
    const ages = entries.map((entry) => entry.age).filter((age) => age !== null && age !== undefined);
    if (!ages.length) { shown.textContent = ""; return; }
    const age = Math.max(...ages) + (Date.now() - receivedAt) / 1000;
    const every = (state.list || {}).every || 5;
    const newer = age > 2 * every && entries.some((entry) => entry.refreshing) ? "; asking Qarnot for newer data…" : "";
    shown.textContent = `As of ${duration(age)} ago${newer}`;
  }

  // ---- the list

  // On the tab of a DAG run: its share of a pool that other runs use, too.
  const ownFigures = (row) => (row.mine ? row.mine.figures : row.figures);
  const ownTasks = (row) => (row.mine ? row.mine.tasks : row.tasks);
  const unfinished = (row) => (row.tasks ? row.tasks.running + row.tasks.queued : 0);
  const SORTS = {
    name: (row) => row.name.toLowerCase(),
    state: (row) => row.phase,
    age: (row) => -(Date.parse(row.created) || 0),
    slots: (row) => row.ready,
    tasks: (row) => unfinished(row),
    cost: (row) => (ownFigures(row) || {}).euros || 0,
    carbon: (row) => (ownFigures(row) || {}).carbon_g || 0,
  };
  const isEnded = (row) => row.phase === "closed" || row.phase === "failed";
  const FILTERS = {
    current: ["Open, and just ended", (row) => !isEnded(row) || since(row.ended) < RECENT_SECONDS],
    open: ["Open", (row) => !isEnded(row)],
    warned: ["With warnings", (row) => row.warnings.length > 0],
    ended: ["Ended", isEnded],
    all: ["All", () => true],
  };

  function textOf(row) {
    const owner = row.owner;
    return [row.name, row.shortname, row.uuid, row.state, row.connection, owner.dag_id, owner.run_id, owner.shared].join(" ").toLowerCase();
  }

  function chosenRows() {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const keep = query ? () => true : FILTERS[state.filter][1];
    const rows = state.list.pools.filter((row) => keep(row) && words.every((word) => textOf(row).includes(word)));
    if (SORTS[state.sort]) {
      const value = SORTS[state.sort];
      const sign = state.down ? -1 : 1;
      rows.sort((a, b) => (value(a) < value(b) ? -sign : value(a) > value(b) ? sign : 0));
    }
    return rows;
  }

  function listView() {
    if (!state.list) return [state.problem ? null : el("p", { class: "quiet" }, "Asking Qarnot…")];
    const known = state.list.known;
    const failed = state.list.connections.length && state.list.connections.every((each) => each.error !== null);
    const all = state.list.pools;
    const head = el("div", { class: "head" }, el("h1", {}, query ? "Qarnot pools of this DAG run" : "Qarnot pools"));
    if (!known) return [head, failed ? null : el("p", { class: "quiet" }, "Asking Qarnot…")];
    if (!all.length) return [head, nothing()];
    const rows = chosenRows();
    const pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
    state.page = Math.min(state.page, pages - 1);
    const shown = rows.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE);
    if (!query || all.length > PER_PAGE) head.append(tools());
    return [head, tiles(all), rows.length ? table(shown) : noMatch(), pages > 1 ? pager(rows.length, pages) : null];
  }

  function nothing() {
    return el("div", { class: "empty" },
      el("strong", {}, query ? "No Qarnot pool belongs to this DAG run" : "No pools, and nothing is billed"),
      query ? "Pools that its tasks open or use are shown here." : "A pool is shown here as soon as a DAG opens one.");
  }

  function noMatch() {
    const clear = () => { state.search = ""; state.filter = "all"; state.page = 0; render(); };
    return el("div", { class: "empty" }, el("strong", {}, "No pool matches"),
      el("button", { type: "button", onclick: clear, "data-key": "clear" }, "Show all pools"));
  }

  function tools() {
    const search = el("input", { type: "search", placeholder: "Name, DAG, run, uuid…", "aria-label": "Search pools", "data-key": "search", oninput: (event) => { state.search = event.target.value; state.page = 0; render(); } });
    search.value = state.search;
    const filter = el("select", { "aria-label": "Which pools", "data-key": "filter", onchange: (event) => { state.filter = event.target.value; state.page = 0; render(); } },
      Object.entries(FILTERS).map(([name, [text, keep]]) => el("option", { value: name, selected: name === state.filter }, `${text} (${state.list.pools.filter(keep).length})`)));
    return el("div", { class: "tools" }, search, query ? null : filter);
  }

  function tiles(rows) {
    const open = rows.filter((row) => !isEnded(row));
    const sum = (read, list) => list.reduce((total, row) => total + (read(row) || 0), 0);
    const known = (name, read) => rows.filter((row) => read(row) && read(row)[name] !== null);
    const tile = (name, value, more) => el("div", {}, el("dt", {}, name), el("dd", {}, value, " ", more ? el("small", {}, more) : null));
    const priced = known("euros", ownFigures);
    const saved = known("saved_g", ownFigures);
    const pricedWhole = known("euros", (row) => row.figures);
    const partly = (list) => (list.length < rows.length ? `of ${list.length} of ${rows.length} pools` : "");
    const ofWhole = rows.some((row) => row.mine) && pricedWhole.length === rows.length ? `of ${euros(sum((row) => row.figures.euros, pricedWhole))} in all` : "";
    return el("dl", { class: "tiles" },
      tile("Open pools", String(open.length), rows.length > open.length ? `${rows.length - open.length} ended` : ""),
      tile("Slots ready", whole(sum((row) => row.ready, open)), `of ${whole(sum((row) => row.wanted, open))} wanted`),
      open.some((row) => !ownTasks(row)) ? tile("Qarnot tasks", "…", "being counted") : tile("Qarnot tasks", whole(sum((row) => ownTasks(row).running, open)), `running, ${whole(sum((row) => ownTasks(row).queued, open))} queued`),
      tile(query ? "Cost of this run" : "Cost so far", priced.length ? euros(sum((row) => ownFigures(row).euros, priced)) : "–", partly(priced) || ofWhole),
      tile(query ? "Carbon it saved" : "Carbon saved", saved.length ? grams(sum((row) => ownFigures(row).saved_g, saved)) : "–", saved.length ? "CO₂eq" : ""),
      tile("Warnings", String(sum((row) => row.warnings.length, rows)), ""));
  }

  function table(rows) {
    const several = state.list.connections.length > 1;
    const head = (key, text, style) => {
      const sorted = state.sort === key;
      const turn = () => { state.down = sorted ? !state.down : true; state.sort = key; state.page = 0; render(); };
      const arrow = sorted ? (state.down ? " ↓" : " ↑") : "";
      return el("th", { class: style, scope: "col", "aria-sort": sorted ? (state.down ? "descending" : "ascending") : "none" },
        el("button", { type: "button", class: "plain", onclick: turn, "data-key": `sort:${key}` }, text + arrow));
    };
    return el("div", { class: "scroll" }, el("table", {},
      el("caption", { class: "hidden" }, "Qarnot pools"),
      el("thead", {}, el("tr", {},
        head("name", "Pool"), head("state", "State"), head("age", "Age", "number roomy"), head("slots", "Slots", "number"), head("tasks", "Qarnot tasks"),
        query ? null : el("th", { scope: "col" }, "For"), head("cost", "Cost", "number"), head("carbon", "Energy, carbon", "number roomy"),
        el("th", { scope: "col" }, el("span", { class: "hidden" }, "Actions")))),
      el("tbody", {}, rows.map((row) => tableRow(row, several)))));
  }

  const cell = (name, attributes, ...children) => el("td", { "data-label": name, ...attributes }, ...children);
  const under = (...children) => el("span", { class: "under" }, ...children);
  // In a narrow table the content of a hidden column is below that of another one.
  const tight = (...children) => el("span", { class: "under tight" }, ...children);

  function tableRow(row, several) {
    const age = duration(since(row.created, isEnded(row) ? row.ended : null));
    const ended = isEnded(row) && row.ended ? `ended ${duration(since(row.ended))} ago` : "";
    return el("tr", { "data-uuid": row.uuid },
      cell("Pool", { class: "name" },
        el("a", { href: hashOf(row), "data-key": `pool:${row.uuid}` }, breakable(row.name)),
        several ? under(row.connection) : null, query ? whose(row) : null, warnings(row)),
      cell("State", { class: "phase" }, badge(row.phase, row.state), tight(ended || `for ${age}`)),
      cell("Age", { class: "number roomy" }, el("span", { title: row.created || "" }, age), ended ? under(ended) : null),
      cell("Slots", { class: "number" }, el("span", {}, isEnded(row) ? "–" : `${row.ready} of ${row.wanted}`)),
      cell("Qarnot tasks", {}, el("span", {}, taskCounts(ownTasks(row)), row.mine && row.tasks ? under(`all runs: ${countsText(row.tasks)}`) : null)),
      query ? null : cell("For", {}, owner(row)),
      cell("Cost", { class: "number cost" }, ...cost(row)),
      cell("Energy", { class: "number roomy" }, ...figures(ownFigures(row))),
      cell("", { class: "act" }, closeButton(row)));
  }

  /* On a run's tab the pool is that run's, unless others use it, too. */
  function whose(row) {
    if (row.owner.kind === "shared") return under("shared: ", el("strong", {}, row.owner.shared || "?"));
    return row.mine ? under("used by several DAG runs") : null;
  }

  function cost(row) {
    const own = ownFigures(row);
    const lines = [el("span", {}, own ? euros(own.euros) : "…")];
    if (row.mine && row.figures) lines.push(under(`of ${euros(row.figures.euros)} for the pool`));
    if (own && own.carbon_g !== null) lines.push(tight(`${grams(own.carbon_g)} CO₂eq`));
    return lines;
  }

  function badge(kind, text) {
    return el("span", { class: `state ${/^[a-z]+$/.test(kind) ? kind : "unknown"}` }, text);
  }

  function warnings(row) {
    if (!row.warnings.length) return null;
    return el("ul", { class: "warnings" }, row.warnings.map((warning) => el("li", { class: /^[a-z]+$/.test(warning.kind) ? warning.kind : null }, warning.since ? `${warning.text}, for ${duration(since(warning.since))}` : warning.text)));
  }

  const GROUPS = ["succeeded", "running", "queued", "failed", "cancelled"];

  function taskCounts(tasks) {
    if (!tasks) return el("span", { class: "quiet" }, "…");
    const total = GROUPS.reduce((sum, name) => sum + tasks[name], 0);
    if (!total) return el("span", { class: "quiet" }, "none");
    const bar = el("span", { class: "bar", "aria-hidden": "true" }, GROUPS.filter((name) => tasks[name]).map((name) => part(name, tasks[name])));
    return el("span", {}, countsText(tasks), bar);
  }

  function countsText(tasks) {
    const words = { queued: "queued", running: "running", succeeded: "done", failed: "failed", cancelled: "cancelled" };
    return Object.keys(words).filter((name) => tasks[name]).map((name) => `${tasks[name]} ${words[name]}`).join(", ") || "none";
  }

  function part(kind, size) {
    const segment = el("i", { class: kind });
    segment.style.flexGrow = String(size);
    return segment;
  }

  function owner(row) {
    const whose = row.owner;
    if (whose.kind === "shared") return el("span", {}, "shared: ", el("strong", {}, whose.shared || "?"));
    if (whose.kind !== "run") return el("span", { class: "quiet" }, "not known");
    return el("span", {}, airflowLink(whose.link, whose.dag_id), under(whose.run_id), under(whose.run_state ? `run is ${whose.run_state}` : "no such run"));
  }

  function figures(values) {
    if (!values) return [el("span", {}, "…")];
    if (values.energy_wh === null && values.carbon_g === null) return [el("span", {}, "–")];
    const title = values.datacenter ? `Saved against ${values.datacenter}` : "";
    return [el("span", {}, `${energy(values.energy_wh)}, ${grams(values.carbon_g)}`),
      values.saved_g === null ? null : el("span", { class: "under", title }, `${grams(values.saved_g)} saved`)];
  }

  function pager(count, pages) {
    const turn = (by) => () => { state.page += by; render(); refresh(); };
    return el("div", { class: "pager" },
      el("span", { class: "quiet" }, `${state.page * PER_PAGE + 1}–${Math.min(count, (state.page + 1) * PER_PAGE)} of ${count}`),
      el("button", { type: "button", disabled: state.page === 0, onclick: turn(-1), "data-key": "previous" }, "Previous"),
      el("button", { type: "button", disabled: state.page >= pages - 1, onclick: turn(1), "data-key": "next" }, "Next"));
  }

  // ---- one pool

  function poolView(chosen) {
    const back = el("button", { type: "button", "data-key": "back", onclick: () => { location.hash = ""; } }, query ? "← Pools of this run" : "← All pools");
    const detail = state.pool && state.pool.pool && state.pool.pool.row.uuid === chosen.uuid ? state.pool.pool : null;
    if (!detail) {
      const failed = state.problem || (state.pool && state.pool.error);
      return [el("div", { class: "head" }, back), failed ? null : el("p", { class: "quiet" }, "Asking Qarnot…")];
    }
    const row = detail.row;
    const costs = ownFigures(row) || {};
    const all = row.figures || {};
    const ofPool = (text) => (row.mine ? under(`of ${text} for the pool`) : null);
    const fact = (name, ...value) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value));
    return [
      el("div", { class: "head" }, back),
      el("div", { class: "head" },
        el("div", { class: "title" }, el("h1", {}, row.name), badge(row.phase, row.state)),
        el("div", { class: "tools" }, outsideLink(row.console, "Qarnot console ↗"), closeButton(row))),
      warnings(row),
      el("dl", { class: "facts" },
        fact("For", owner(row)),
        fact("Slots", isEnded(row) ? "–" : `${row.ready} ready of ${row.wanted} wanted`),
        fact("Qarnot tasks", taskCounts(ownTasks(row)), row.mine && row.tasks ? under(`all runs: ${countsText(row.tasks)}`) : null),
        fact("Created", when(row.created)),
        fact(isEnded(row) ? "Lasted" : "Age", duration(since(row.created, isEnded(row) ? row.ended : null))),
        fact(row.mine ? "Cost of this run" : "Cost so far", euros(costs.euros), ofPool(euros(all.euros))),
        fact("Nodes paid for", el("span", {}, duration(detail.use.node_seconds)), detail.use.idle_node_seconds === null ? null : under(`of these idle: ${duration(detail.use.idle_node_seconds)}`), row.mine ? under("the whole pool") : null),
        fact("Energy", energy(costs.energy_wh), ofPool(energy(all.energy_wh))),
        fact("Carbon", `${grams(costs.carbon_g)} CO₂eq`, ofPool(grams(all.carbon_g))),
        fact("Saved", costs.saved_g === null || costs.saved_g === undefined ? "–" : `${grams(costs.saved_g)} CO₂eq`,
          costs.datacenter ? under(`against ${costs.datacenter}`) : null),
        fact("Connection", row.connection),
        fact("Shortname", row.shortname || "–"),
        fact("Uuid", row.uuid)),
      ...errorsView(detail.errors),
      el("h2", {}, "Timeline"), timelineView(detail.timeline, row),
      ...nodesView(detail.nodes, row),
      ...tasksView(detail),
    ];
  }

  function errorsView(errors) {
    if (!errors.length) return [];
    return [el("h2", {}, "Last errors"), ...errors.map((error) => el("div", {}, el("strong", {}, `${error.tasks.length ? error.tasks[0].name : error.of}${error.count > 1 ? ` (${error.count} times)` : ""}`), el("pre", {}, error.text)))];
  }

  const KINDS = { Submitted: "booting", PartiallyDispatched: "booting", FullyDispatched: "booting", PartiallyExecuting: "open", FullyExecuting: "open", Closing: "closing", PendingDelete: "closing", Closed: "closed", Failure: "failed" };

  function timelineView(steps, row) {
    const lasting = steps.map((step, i) => {
      const next = steps[i + 1];
      return next ? since(step.at, next.at) : isEnded(row) ? null : since(step.at);
    });
    const bar = el("div", { class: "bar", "aria-hidden": "true" }, steps.map((step, i) => part(KINDS[step.state] || "unknown", Math.max(lasting[i] || 0, 0.01))));
    const list = el("ol", { class: "timeline" }, steps.map((step, i) =>
      el("li", {}, badge(KINDS[step.state] || "unknown", step.state), when(step.at), el("span", { class: "quiet" }, lasting[i] === null ? "" : `for ${duration(lasting[i])}`))));
    return el("div", {}, bar, list);
  }

  function nodesView(nodes, row) {
    if (!nodes.length) return isEnded(row) ? [] : [el("h2", {}, "Nodes"), el("p", { class: "quiet" }, "No node is up.")];
    return [el("h2", {}, `Nodes (${nodes.length})`), el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ["Node", "Phase", "Up for", "CPU", "Memory", "Processor"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, nodes.map((node) => el("tr", {},
        cell("Node", {}, el("span", {}, String(node.id ?? "–"))), cell("Phase", {}, el("span", {}, node.phase || "–")), cell("Up for", {}, el("span", {}, duration(since(node.since)))),
        cell("CPU", {}, el("span", {}, node.cpu_percent === null ? "–" : `${Math.round(node.cpu_percent)} %`)),
        cell("Memory", {}, el("span", {}, node.memory_mb === null ? "–" : `${Math.round(node.memory_mb)} MB`)),
        cell("Processor", {}, el("span", {}, node.model || "–")))))))];
  }

  function tasksView(detail) {
    const title = el("h2", {}, `Qarnot tasks (${detail.task_count})`);
    if (!detail.tasks.length) return [title, el("p", { class: "quiet" }, "No Qarnot task has run on this pool.")];
    const more = detail.task_count > detail.tasks.length ? el("p", { class: "quiet" }, `The youngest ${detail.tasks.length} of ${detail.task_count} are shown.`) : null;
    return [title, more, el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ["Qarnot task", "State", "Airflow task", "Instances", "Created", "Ran for"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, detail.tasks.map(taskRow))))];
  }

  function taskRow(task) {
    const name = task.map_index === null ? task.task_id : `${task.task_id} [${task.map_index}]`;
    const instances = task.failed_instances ? `${task.instances}, ${task.failed_instances} failed` : String(task.instances ?? "–");
    return el("tr", {},
      cell("Qarnot task", { class: "name" }, el("span", {}, task.name), task.warm_up ? under("boots the nodes; not the DAG's work") : null),
      cell("State", {}, badge(task.group, task.state)),
      cell("Airflow task", {}, task.link ? el("span", {}, airflowLink(task.link, name || "run"), under(task.dag_id)) : el("span", { class: "quiet" }, "none")),
      cell("Instances", {}, el("span", {}, instances)),
      cell("Created", {}, when(task.created)),
      cell("Ran for", {}, el("span", {}, duration(task.seconds))));
  }

  // ---- closing

  function mayClose(row) {
    if (opened()) return Boolean(state.pool && state.pool.may_edit);
    return state.list.connections.some((each) => each.id === row.connection && each.may_edit);
  }

  function closeButton(row) {
    if (!row.closable || !mayClose(row)) return null;
    return el("button", { type: "button", class: "danger", "data-key": `close:${row.uuid}`, "aria-label": `Close pool ${row.name}`, onclick: () => confirmClosing(row) }, "Close");
  }

  function confirmClosing(row) {
    const left = unfinished(row);
    const lost = !row.tasks ? "" : left ? ` ${left} unfinished Qarnot task${left === 1 ? " is" : "s are"} cancelled with it; their Airflow tasks fail or are retried.` : " Nothing runs on it.";
    document.getElementById("closing-text").textContent = `${row.name} has ${row.ready} slot${row.ready === 1 ? "" : "s"} up.${lost}`;
    document.getElementById("closing-error").textContent = "";
    const yes = document.getElementById("closing-yes");
    yes.disabled = false;
    yes.onclick = async () => {
      yes.disabled = true;
      try {
        const path = `api/connections/${encodeURIComponent(row.connection)}/pools/${encodeURIComponent(row.uuid)}/close`;
        await request(path, { method: "POST", headers: { Accept: "application/json", ...ACTION } });
        dialog.close();
        refresh();
      } catch (error) {
        document.getElementById("closing-error").textContent = error.message;
        yes.disabled = false;
      }
    };
    dialog.showModal();
  }

  // ---- Airflow's theme

  function theme() {
    let dark = null;
    try {
      if (framed()) dark = window.parent.document.documentElement.classList.contains("dark");
    } catch { /* framed by another origin: use the stored choice, or the system's */ }
    if (dark === null) {
      let stored = null;
      try { stored = localStorage.getItem("theme"); } catch { /* no storage here */ }
      dark = stored === "dark" || (stored !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    }
    const root = document.documentElement;
    root.classList.toggle("dark", dark);
    root.style.removeProperty("--panel");
    try {
      const around = framed() ? window.parent.getComputedStyle(window.parent.document.body).backgroundColor : "";
      if (around && !/^(transparent|rgba\(.*, 0\))$/.test(around)) root.style.setProperty("--panel", around);
    } catch { /* keep our own colour */ }
  }

  theme();
  window.addEventListener("storage", theme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
  if (framed()) new MutationObserver(theme).observe(window.parent.document.documentElement, { attributes: true, attributeFilter: ["class"] });
  document.getElementById("closing-no").addEventListener("click", () => dialog.close());
  window.addEventListener("hashchange", () => { state.pool = null; state.problem = null; render(); refresh(); window.scrollTo(0, 0); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); else clearTimeout(timer); });
  setInterval(status, 1000);
  refresh();
})();
