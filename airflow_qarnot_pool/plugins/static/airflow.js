/* Airflow's page around this one: its theme, its time zone, its address and its links.

   Airflow 3.1 to 3.3 show the page in a frame of the same origin, whose sandbox forbids pop-ups, downloads (before 3.3)
   and steering the page around it. A link in that page may do all of it. The theme is a class of its root element, and
   the time zone a value in the storage of the browser, as JSON. */

const base = new URL("../", location.href);
const PAGE = "plugin/qarnot-pools";

function outer() {
  try { return window.parent !== window && window.parent.document.body ? window.parent : null; } catch { return null; }
}

const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };

/* ---- theme and zone */

export function timeZone() {
  try { return JSON.parse(stored("timezone")); } catch { return null; }
}

function isDark() {
  const around = outer();
  if (around) return around.document.documentElement.classList.contains("dark");
  const choice = stored("theme");
  return choice === "dark" || (choice !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
}

/* The colour on which Airflow shows the frame: of the nearest element around it that has one. */
function backdrop() {
  const around = outer();
  try {
    for (let element = window.frameElement; around && element; element = element.parentElement) {
      const colour = around.getComputedStyle(element).backgroundColor;
      if (colour && !/^(transparent|.*[,/] ?0\))$/.test(colour)) return colour;
    }
  } catch { /* framed by another origin */ }
  return "";
}

function showTheme() {
  const root = document.documentElement;
  root.classList.toggle("dark", isDark());
  const colour = backdrop();
  if (colour) root.style.setProperty("--panel", colour);
  else root.style.removeProperty("--panel");
}

/* Follow Airflow's theme and its time zone. *changed* is called when the zone may be another one. */
export function follow(changed) {
  showTheme();
  window.addEventListener("storage", () => { showTheme(); changed(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  const around = outer();
  if (!around) return;
  const observer = new MutationObserver(showTheme);
  const changedThere = () => changed();
  const attach = () => {
    observer.observe(around.document.documentElement, { attributes: true, attributeFilter: ["class", "style", "data-theme"] });
    // In Airflow's own page this event, and no "storage", follows a change of the zone.
    around.addEventListener("local-storage", changedThere);
  };
  attach();
  // Airflow's page lives longer than this one, which may come back as it was.
  window.addEventListener("pagehide", () => { observer.disconnect(); around.removeEventListener("local-storage", changedThere); });
  window.addEventListener("pageshow", ({ persisted }) => { if (persisted) { attach(); showTheme(); changed(); } });
}

/* ---- the address */

/* The part after "#" of the address that people see and send. */
export const outerHash = () => { const around = outer(); return around ? around.location.hash : location.hash; };

/* Show *hash* in Airflow's address, without an entry of its own in the history. */
export function setOuterHash(hash) {
  const around = outer();
  if (!around) return;
  const { pathname, search } = around.location;
  const plain = hash === "#" ? "" : hash;
  if (around.location.hash !== plain) around.history.replaceState(around.history.state, "", pathname + search + plain);
}

/* The whole address of *hash*, to be sent. */
export function addressOf(hash, isOfRun) {
  const around = outer();
  const page = isOfRun ? (around || window).location.href : new URL(PAGE, base).href;
  return page.replace(/#.*/, "") + (hash === "#" ? "" : hash);
}

/* ---- links and downloads */

/* The address of a path in Airflow's UI. */
export const airflowPath = (path) => new URL(path, base).href;

/* Click on a link in the page around this one, which may do what the frame may not. */
function clickOutside(attributes) {
  const at = (outer() || window).document;
  const link = Object.assign(at.createElement("a"), attributes);
  at.body.append(link);
  link.click();
  link.remove();
}

/* Follow a link, in a new tab if the user asked for one. */
export function go(href, isNewTab) {
  clickOutside(isNewTab ? { href, target: "_blank", rel: "noopener noreferrer" } : { href });
}

export const isFramed = () => outer() !== null;

/* Save *text* as a file. */
export function save(name, type, text) {
  const href = URL.createObjectURL(new Blob([text], { type }));
  clickOutside({ href, download: name });
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}

/* Copy *text*. Without HTTPS browsers have no clipboard, but they copy a selection. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "hidden";
    const place = document.querySelector("dialog[open]") || document.body;
    const active = document.activeElement;
    place.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (active) active.focus({ preventScroll: true });
    return done;
  }
}
