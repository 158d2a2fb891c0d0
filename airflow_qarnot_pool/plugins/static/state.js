/* The address of a view: everything after "#" is the pool, the tab, the filters and the order. It is read from, and
   written to, the address of the page and of Airflow's page around it, so that it survives a reload and can be sent. */

export const PARTS = ["tab", "task", "colour", "zoom", "show", "q", "dag", "state", "connection", "tag", "owner", "sort", "group", "page"];
/* Parts that belong to one pool, and not to the list. */
const OF_POOL = ["tab", "task", "colour", "zoom"];

const decode = (text) => { try { return decodeURIComponent(text); } catch { return text; } };
/* Characters that an address may hold as they are stay readable. */
const encode = (text) => encodeURIComponent(text).replace(/%(2F|3A|40|2C)/g, (code) => decodeURIComponent(code));

/* Airflow 3.1 inserts a run's id without encoding. So a "+" is no space, and the id is everything after "run_id=". */
export function runOf(search) {
  const match = /^\?dag_id=([^&]*)&run_id=(.*)$/s.exec(search);
  return match ? { dag: decode(match[1]), run: decode(match[2]) } : null;
}

/* "#pool=connection/uuid&tab=tasks" as an object. Unknown parts are dropped. */
export function parse(hash) {
  const view = {};
  for (const part of hash.replace(/^#/, "").split("&")) {
    const at = part.indexOf("=");
    if (at < 1) continue;
    const [name, text] = [part.slice(0, at), part.slice(at + 1)];
    if (name === "pool") {
      const slash = text.indexOf("/");
      const uuid = decode(text.slice(slash + 1));
      if (uuid) view.pool = { connection: slash < 0 ? null : decode(text.slice(0, slash)), uuid };
    } else if (PARTS.includes(name) && text) {
      view[name] = decode(text);
    }
  }
  return view;
}

export function format(view) {
  const parts = [];
  if (view.pool) {
    const { connection, uuid } = view.pool;
    parts.push(`pool=${connection === null ? "" : `${encodeURIComponent(connection)}/`}${encodeURIComponent(uuid)}`);
  }
  for (const name of PARTS) if (view[name]) parts.push(`${name}=${encode(view[name])}`);
  return `#${parts.join("&")}`;
}

/* The address of *view* with *changes*; an empty value removes a part. A change of the list shows its first page. */
export function to(view, changes) {
  const page = Object.keys(changes).some((name) => !OF_POOL.includes(name)) ? { page: "" } : {};
  return format({ ...view, ...page, ...changes });
}

/* The address of a pool. The filters of the list are no part of it. */
export const toPool = (row, more = {}) => format({ pool: { connection: row.connection, uuid: row.uuid }, ...more });
