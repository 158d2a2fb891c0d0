/* Numbers, durations and instants as texts. Instants are shown as Airflow shows them: in the zone that the user has
   chosen there, as 2026-11-30 18:20:05. */

let zone;
let formats = {};

/* Use the time zone *name*, or that of the browser if it is unknown. Returns whether it has changed. */
export function setZone(name) {
  let known = name || undefined;
  try { new Intl.DateTimeFormat("en", { timeZone: known }); } catch { known = undefined; }
  if (known === zone) return false;
  zone = known;
  formats = {};
  return true;
}

function inZone(style, options) {
  // Swedish is ISO's form: 2026-11-30 18:20:05.
  formats[style] = formats[style] || new Intl.DateTimeFormat("sv-SE", { timeZone: zone, hourCycle: "h23", ...options });
  return formats[style];
}

const DAY = { year: "numeric", month: "2-digit", day: "2-digit" };
const CLOCK = { hour: "2-digit", minute: "2-digit" };

/* Epoch seconds as 2026-11-30 18:20:05. */
export const stamp = (seconds) => inZone("stamp", { ...DAY, ...CLOCK, second: "2-digit" }).format(seconds * 1000);
/* Epoch seconds as a mark of an axis, of which one covers *span* seconds. */
export function mark(seconds, span) {
  if (span < 60) return inZone("second", { ...CLOCK, second: "2-digit" }).format(seconds * 1000);
  if (span < 86400) return inZone("clock", CLOCK).format(seconds * 1000);
  return inZone("day", { month: "2-digit", day: "2-digit" }).format(seconds * 1000);
}
/* Seconds by which the zone is before UTC at an instant. Marks of an axis are whole hours there. */
export function offset(seconds) {
  const parts = stamp(seconds).match(/\d+/g).map(Number);
  return Date.UTC(parts[0], parts[1] - 1, ...parts.slice(2)) / 1000 - Math.floor(seconds);
}

export const epoch = (iso) => (iso ? Date.parse(iso) / 1000 : null);

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return coarse(s);
}

/* A duration that changes once a minute. */
export function coarse(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return "< 1 min";
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/* Formats are made once, because that takes long. */
function numbers(options) {
  let format = null;
  return (value) => { format = format || new Intl.NumberFormat(undefined, options); return format.format(value); };
}
const EURO = { style: "currency", currency: "EUR", minimumFractionDigits: 2 };
const exactEuros = numbers({ ...EURO, maximumFractionDigits: 4 });
const plainEuros = numbers({ ...EURO, maximumFractionDigits: 2 });
const threeDigits = numbers({ maximumSignificantDigits: 3 });

const isMissing = (value) => value === null || value === undefined;

export function euros(value) {
  if (isMissing(value)) return "–";
  return value !== 0 && Math.abs(value) < 1 ? exactEuros(value) : plainEuros(value);
}

function scaled(value, small, large) {
  if (isMissing(value)) return "–";
  if (value > 0 && value < 0.01) return `< 0.01 ${small}`;
  const [amount, unit] = Math.abs(value) >= 1000 ? [value / 1000, large] : [value, small];
  return `${threeDigits(amount)} ${unit}`;
}
export const energy = (value) => scaled(value, "Wh", "kWh");
export const grams = (value) => scaled(value, "g", "kg");
export const whole = numbers({ maximumFractionDigits: 0 });
export const some = (value) => (isMissing(value) ? "–" : threeDigits(value));
export const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;

/* A text of a table of values: RFC 4180, and no cell that a spreadsheet takes for a formula. */
export function csv(rows) {
  const cell = (value) => {
    if (isMissing(value)) return "";
    if (typeof value === "number") return String(value);
    const later = String(value).replace(/([;|\t\r\n]\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])/g, "$1'"); // a cell, too, where these separate cells
    const text = /^\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]/.test(later) ? `'${later}` : later;
    return /[",\r\n']/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
